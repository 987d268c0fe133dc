"""LaProp with adaptive gradient clipping, and the average of the weights, against scalar loops."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import expect_equal
from torch import Tensor, nn

from worldmodel.optim import Average, LaProp, clip_to_weights, decayed


class Slow:
    """One tensor's LaProp in Python numbers (DreamerV3's chain: AGC, RMS scaling, momentum, learning rate), with the
    decoupled weight decay of AdamW for all but vectors."""

    def __init__(self, weight: Tensor, lr: float, warmup: int, agc=0.3, beta1=0.9, beta2=0.999, eps=1e-20, decay=0.0):
        self.w = weight.flatten().tolist()
        self.m, self.v, self.t = [0.0] * len(self.w), [0.0] * len(self.w), 0
        self.lr, self.warmup, self.agc, self.beta1, self.beta2, self.eps = lr, warmup, agc, beta1, beta2, eps
        self.decay = decay if weight.dim() > 1 else 0.0

    def step(self, grad: Tensor) -> None:
        g = grad.flatten().tolist()
        self.t += 1
        norm, bound = math.hypot(*g), self.agc * max(1e-3, math.hypot(*self.w))
        g = [x / max(1.0, norm / bound) for x in g]
        lr = self.lr * min(1.0, self.t / self.warmup)
        for i, x in enumerate(g):
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * x * x
            u = x / (math.sqrt(self.v[i] / (1 - self.beta2**self.t)) + self.eps)
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * u
            self.w[i] -= lr * (self.m[i] / (1 - self.beta1**self.t) + self.decay * self.w[i])


def tensors() -> list[nn.Parameter]:
    """Of several shapes and sizes; the last two are zero, as layers of output scale 0, and huge."""
    shapes = [(3, 4), (5,), (), (2, 3, 2), (4,), (6,)]
    scales = [1.0, 0.01, 2.0, 1e-5, 0.0, 1e3]
    return [nn.Parameter(s * torch.randn(shape, dtype=torch.float64)) for shape, s in zip(shapes, scales, strict=True)]


@pytest.mark.parametrize(("beta2", "decay"), [(0.999, 0.0), (0.9, 0.0), (0.999, 3.0)])
def test_laprop_against_the_scalar_loop(beta2: float, decay: float) -> None:
    params = tensors()
    groups = [{"params": params[:3], "lr": 1e-2, "weight_decay": decay}, {"params": params[3:], "lr": 3e-3}]
    optimizer = LaProp(groups, 0.0, warmup=4, beta2=beta2)
    slow = [
        Slow(p.detach(), 1e-2 if i < 3 else 3e-3, 4, beta2=beta2, decay=decay if i < 3 else 0.0)
        for i, p in enumerate(params)
    ]
    for step in range(12):
        for i, (p, s) in enumerate(zip(params, slow, strict=True)):
            p.grad = torch.randn_like(p) * 10.0 ** (step % 5 - 3 + i % 2)  # some clipped, some not
            s.step(p.grad)
        optimizer.step()
        for p, s in zip(params, slow, strict=True):
            torch.testing.assert_close(
                p.detach().flatten(), torch.tensor(s.w, dtype=torch.float64), rtol=1e-9, atol=1e-12
            )


def test_first_step_is_the_warmed_up_rate_times_the_sign() -> None:
    """Both moments are bias-corrected, so the first update is exactly lr / warmup whatever the size of the gradient."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = LaProp([weight], 1e-2, warmup=10)
    weight.grad = torch.tensor([1e-6, -50.0, 0.0])
    optimizer.step()
    expect_equal(weight.detach(), torch.tensor([1.0 - 1e-3, -2.0 + 1e-3, 3.0]), 1e-6)


def test_warm_up_is_linear_then_constant() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = LaProp([weight], 1e-3, warmup=4)
    moves = []
    for _ in range(6):
        before = weight.item()
        weight.grad = torch.ones(1)
        optimizer.step()
        moves.append(before - weight.item())
    assert moves == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3], rel=1e-2)


def test_a_rate_multiplies_the_step_and_composes_with_the_warm_up() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = LaProp([{"params": [weight], "lr": 1e-3}], 0.0, warmup=4)
    moves = []
    for rate in (1.0, 0.5, 0.25, 0.0, 0.5, 1.0):
        before = weight.item()
        weight.grad = torch.ones(1)
        optimizer.step(rate)
        moves.append(before - weight.item())
    assert moves == pytest.approx([0.25e-3, 0.25e-3, 0.1875e-3, 0.0, 0.5e-3, 1e-3], rel=1e-2)
    assert int(optimizer.state[weight]["step"]) == 6 and optimizer.param_groups[0]["lr"] == 1e-3


def test_every_group_has_a_rate_of_its_own() -> None:
    one, two = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = LaProp([{"params": [one], "lr": 1e-3}, {"params": [two], "lr": 1e-2}], 0.0, warmup=1)
    one.grad, two.grad = torch.ones(1), torch.ones(1)
    optimizer.step(0.5, 0.25)
    assert [1 - one.item(), 1 - two.item()] == pytest.approx([0.5e-3, 2.5e-3], rel=1e-3)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        optimizer.step(0.5, 0.25, 1.0)


@pytest.mark.parametrize(
    ("progress", "share", "final", "expected"),
    [
        (0.0, 0.4, 0.1, 1.0), (0.6, 0.4, 0.1, 1.0), (0.7, 0.4, 0.1, 0.775), (0.8, 0.4, 0.1, 0.55), (1.0, 0.4, 0.1, 0.1),
        (1.3, 0.4, 0.1, 0.1), (0.25, 1.0, 0.0, 0.75), (1.0, 1.0, 0.0, 0.0), (0.99, 0.0, 0.1, 1.0), (1.5, 0.0, 0.1, 1.0),
        (0.9, 0.4, 1.0, 1.0),
    ],
)  # fmt: skip
def test_decay_is_linear_over_the_last_share(progress: float, share: float, final: float, expected: float) -> None:
    assert decayed(progress, share, final) == pytest.approx(expected)


def test_no_warm_up() -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer = LaProp([weight], 1e-3, warmup=0)
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 1e-3)


def test_clipping_bounds_each_tensor_by_its_own_weight() -> None:
    params = [torch.full((4,), 1.0), torch.full((4,), 1.0), torch.zeros(4)]  # norms 2, 2, 0
    grads = [torch.full((4,), 3.0), torch.full((4,), 0.1), torch.full((4,), 1.0)]  # norms 6, 0.2, 2
    kept = [g.clone() for g in grads]
    clipped = clip_to_weights(grads, params, 0.3)
    assert [g.norm().item() for g in clipped] == pytest.approx([0.6, 0.2, 0.3e-3])
    for before, after, new in zip(kept, grads, clipped, strict=True):
        assert torch.equal(before, after) and new.data_ptr() != after.data_ptr()
        assert torch.nn.functional.cosine_similarity(before, new, 0).item() == pytest.approx(1)


def test_step_leaves_gradients_and_unused_parameters_alone() -> None:
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1, 3))
    optimizer = LaProp([used, unused], 1e-2)
    used.grad = torch.tensor([5.0, 6.0, 7.0])
    optimizer.step()
    LaProp([{"params": [unused], "lr": 1e-2, "weight_decay": 1.0}], 0.0).step()  # nor are they decayed
    assert used.grad.tolist() == [5.0, 6.0, 7.0] and torch.equal(unused.detach(), torch.ones(1, 3))
    assert int(optimizer.state[unused]["step"]) == 0 and int(optimizer.state[used]["step"]) == 1


def test_a_tensor_that_joins_late_does_not_change_the_others() -> None:
    late, early = nn.Parameter(torch.ones(1, dtype=torch.float64)), nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer, slow = LaProp([late, early], 1e-2, warmup=1), Slow(torch.ones(1), 1e-2, 1)
    for step in range(4):
        late.grad = torch.ones_like(late) if step >= 2 else None
        early.grad = torch.full_like(early, 0.1 * (step + 1))
        slow.step(early.grad)
        optimizer.step()
    assert early.item() == pytest.approx(slow.w[0], rel=1e-9)


def test_a_group_may_be_given_as_a_generator() -> None:
    """`{"params": module.parameters()}` must not be used up before the first step."""
    module = nn.Linear(2, 2)
    optimizer = LaProp([{"params": module.parameters(), "lr": 1e-2}], 0.0, warmup=1)
    before = module.weight.detach().clone()
    module.weight.grad = torch.ones(2, 2)
    optimizer.step()
    expect_equal(module.weight.detach(), before - 1e-2)
    optimizer.zero_grad()
    assert module.weight.grad is None


def test_a_zero_gradient_moves_nothing_and_is_not_nan() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = LaProp([weight], 1e-2, warmup=1)
    for _ in range(2):
        weight.grad = torch.zeros(3)
        optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(3))


def test_average_against_a_loop() -> None:
    modules = {"a": nn.Linear(3, 2), "b": nn.BatchNorm1d(2, track_running_stats=False)}
    modules["a"].register_buffer("scale", torch.zeros(()))
    average = Average(modules, decay=0.7)
    expected = {k: v.clone() for k, v in average.weights.items()}
    assert set(expected) == {"a.weight", "a.bias", "a.scale", "b.weight", "b.bias"}
    for t in range(1, 40):
        with torch.no_grad():
            for p in [*modules["a"].parameters(), *modules["b"].parameters(), modules["a"].scale]:
                p.add_(torch.randn_like(p))
        average.update()
        decay = min(0.7, t / (t + 10))  # reaches 0.7 at t = 24
        for name, module in modules.items():
            for key, value in module.state_dict().items():
                expected[f"{name}.{key}"] = decay * expected[f"{name}.{key}"] + (1 - decay) * value
                expect_equal(average.weights[f"{name}.{key}"], expected[f"{name}.{key}"])
    assert average.updates == 39


def test_average_is_a_copy_and_soon_forgets_the_start() -> None:
    module = nn.Linear(2, 2, bias=False)
    nn.init.constant_(module.weight, 100.0)
    average = Average({"m": module}, decay=0.997)
    assert average.weights["m.weight"].data_ptr() != module.weight.data_ptr()
    nn.init.constant_(module.weight, 1.0)
    assert average.weights["m.weight"][0, 0] == 100
    for _ in range(20):
        average.update()
    assert average.weights["m.weight"][0, 0].item() == pytest.approx(1, abs=1e-3)
    assert torch.equal(module.weight.detach(), torch.ones(2, 2))
