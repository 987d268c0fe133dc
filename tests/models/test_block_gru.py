"""The block GRU against the paper's own form of it: G small GRUs, each with all inputs."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from tiny import ACTIONS, SEEN, WORLD, expect_equal, shake
from torch import Tensor, nn

from worldmodel.models.rssm import RSSM, BlockGRU


def as_the_paper_writes_it(core: BlockGRU, deter: Tensor, stoch: Tensor, action: Tensor, kind: str) -> Tensor:
    """DreamerV3's `_core`, one example and one block at a time, in float64 and from the weights alone.

    Every block is fed its slice of h with all three embedded inputs behind it, through one matrix of its own.
    """
    w = {name: p.detach().double() for name, p in core.named_parameters()}

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        x = x - x.mean() if kind == "layer" else x
        return x / (x.square().mean() + 1e-4).sqrt() * weight

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    def embed(name: str, x: Tensor) -> Tensor:
        return silu(norm(w[f"{name}.0.weight"] @ x + w[f"{name}.0.bias"], w[f"{name}.1.weight"]))

    blocks, wide = core.blocks, deter.shape[-1] // core.blocks
    out = []
    for h, z, a in zip(deter.double(), stoch.double(), action.double(), strict=True):
        a = torch.stack([x / max(1.0, abs(x.item())) for x in a])
        inputs = torch.cat([embed("from_deter", h), embed("from_stoch", z), embed("from_action", a)])
        hidden = []
        for g in range(blocks):
            mine = slice(wide * g, wide * g + wide)
            matrix = torch.cat(
                [w["block_in.weight"][g], w["dense_in.weight"][mine].T]
            )  # (deter / G + 3 hidden, deter / G)
            hidden.append(torch.cat([h[mine], inputs]) @ matrix + w["dense_in.bias"][mine])
        x = silu(norm(torch.cat(hidden), w["norm.weight"]))
        following = []
        for g in range(blocks):
            mine = slice(wide * g, wide * g + wide)
            gates = x[mine] @ w["gates.weight"][g] + w["gates.bias"][3 * wide * g : 3 * wide * (g + 1)]
            reset, candidate, update = gates[:wide], gates[wide : 2 * wide], gates[2 * wide :]
            candidate = torch.tanh(torch.sigmoid(reset) * candidate)
            update = torch.sigmoid(update - 1)
            following.append(update * candidate + (1 - update) * h[mine])
        out.append(torch.cat(following))
    return torch.stack(out)


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_block_gru_is_g_small_grus_as_the_paper_writes_them(blocks: int, kind: str) -> None:
    core = shake(BlockGRU(ACTIONS, dataclasses.replace(WORLD, blocks=blocks, norm=kind)), 0.5)
    deter, stoch = torch.rand(3, 16) * 2 - 1, torch.eye(12)[torch.tensor([1, 5, 11])]
    taken = torch.tensor([[0.3, -2.5, 1.0], [4.0, 0.0, -1.0], [0.1, 0.2, 0.3]])
    actual = core(deter, stoch, core.embed_action(taken))
    expect_equal(actual, as_the_paper_writes_it(core, deter, stoch, taken, kind).float())


def test_block_gru_starts_as_the_papers_wide_layer_would() -> None:
    """Two layers stand for one of `deter + 3 hidden blocks` inputs: each must have the variance of the whole."""
    config = dataclasses.replace(WORLD, deter=256, hidden=64, blocks=8)
    core = BlockGRU(2, config)
    sigma = 1 / math.sqrt(256 + 3 * 64 * 8)
    assert core.block_in.weight.std().item() == pytest.approx(sigma, rel=0.05)
    assert core.dense_in.weight.std().item() == pytest.approx(sigma, rel=0.05)
    assert core.gates.weight.std().item() == pytest.approx(1 / 16, rel=0.05)
    assert core.block_in.bias is None and not core.dense_in.bias.any() and not core.gates.bias.any()


def test_posterior_starts_as_one_layer_on_both_of_its_inputs_would() -> None:
    made = RSSM(SEEN["image"], 2, dataclasses.replace(WORLD, deter=128, hidden=64, tokens=96))
    sigma = 1 / math.sqrt(128 + 96)
    assert made.post_deter.weight.std().item() == pytest.approx(sigma, rel=0.05)
    assert made.post_obs.weight.std().item() == pytest.approx(sigma, rel=0.05)


@pytest.fixture
def plain() -> BlockGRU:
    """A GRU whose gates are set by their biases alone: (reset, candidate, update) of every block."""
    core = BlockGRU(ACTIONS, dataclasses.replace(WORLD, deter=8, blocks=2))
    nn.init.zeros_(core.gates.weight)
    return core


def with_gates(core: BlockGRU, reset: float, candidate: float, update: float) -> Tensor:
    """The next deter from 0.5 everywhere."""
    with torch.no_grad():
        core.gates.bias.view(2, 3, 4).copy_(torch.tensor([reset, candidate, update])[None, :, None])
    return core(torch.full((1, 8), 0.5), torch.zeros(1, 12), torch.zeros(1, 8)).detach()


def test_update_gate_is_biased_to_remember(plain: BlockGRU) -> None:
    expect_equal(with_gates(plain, 0.0, 0.0, 0.0), torch.full((1, 8), 0.5 * (1 - 1 / (1 + math.e))))
    expect_equal(with_gates(plain, 0.0, 0.0, -50.0), torch.full((1, 8), 0.5))
    expect_equal(with_gates(plain, 0.0, 0.0, 50.0), torch.zeros(1, 8))


def test_reset_gate_multiplies_the_candidate(plain: BlockGRU) -> None:
    expect_equal(with_gates(plain, 50.0, 0.7, 50.0), torch.full((1, 8), math.tanh(0.7)))
    expect_equal(with_gates(plain, -50.0, 0.7, 50.0), torch.zeros(1, 8))
    expect_equal(with_gates(plain, 0.0, 0.7, 50.0), torch.full((1, 8), math.tanh(0.35)))


def test_actions_are_scaled_back_to_one_by_a_constant() -> None:
    core = shake(BlockGRU(2, WORLD))
    expect_equal(core.embed_action(torch.tensor([[-7.0, 0.5]])), core.embed_action(torch.tensor([[-1.0, 0.5]])))
    beyond = torch.tensor([[4.0, 0.5]], requires_grad=True)
    inside = torch.tensor([[1.0, 0.5]], requires_grad=True)
    for x in (beyond, inside):
        core.embed_action(x).square().sum().backward()
    expect_equal(beyond.grad, inside.grad / torch.tensor([4.0, 1.0]))  # the divisor is a constant
