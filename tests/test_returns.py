"""The lambda-return against slow loops, its limits and a table computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from worldmodel.returns import discount_weights, lambda_return, moving_discount


def n_step(rewards: np.ndarray, values: np.ndarray, discounts: np.ndarray, t: int, n: int) -> float:
    """r_{t+1} + d_{t+1} r_{t+2} + ... + d_{t+1} ... d_{t+n} v_{t+n}; row i holds what belongs to s_{i+1}."""
    total, weight = 0.0, 1.0
    for k in range(t, t + n):
        total += weight * rewards[k]
        weight *= discounts[k]
    return total + weight * values[t + n - 1]


def mixture(rewards: np.ndarray, values: np.ndarray, discounts: np.ndarray, lam: float) -> np.ndarray:
    """The definition: n-step returns mixed with weights (1 - lam) lam^(n-1), the rest on the longest."""
    horizon = len(rewards)
    out = np.zeros(horizon)
    for t in range(horizon):
        longest = horizon - t
        for n in range(1, longest):
            out[t] += (1 - lam) * lam ** (n - 1) * n_step(rewards, values, discounts, t, n)
        out[t] += lam ** (longest - 1) * n_step(rewards, values, discounts, t, longest)
    return out


def random_rows(horizon: int = 7, width: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rewards, values, discounts = torch.randn(3, horizon, width, dtype=torch.float64)
    return rewards, values, 0.99 * torch.sigmoid(discounts)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("horizon", [1, 2, 7])
def test_is_the_mixture_of_n_step_returns(lam: float, horizon: int) -> None:
    rewards, values, discounts = random_rows(horizon)
    actual = lambda_return(rewards, values, discounts, lam)
    assert actual.shape == (horizon, 4)
    for b in range(4):
        expected = mixture(rewards[:, b].numpy(), values[:, b].numpy(), discounts[:, b].numpy(), lam)
        np.testing.assert_allclose(actual[:, b].numpy(), expected, rtol=1e-12, atol=1e-12)


def test_table_by_hand() -> None:
    """Catches a reward paired with the value of its own state instead of the next one."""
    rewards, values = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[10.0], [20.0], [30.0]])
    discounts = torch.tensor([[0.5], [0.5], [0.5]])
    # R_2 = 4 + .5 * 30 = 19 ; R_1 = 2 + .5 (.5 * 20 + .5 * 19) = 11.75 ; R_0 = 1 + .5 (.5 * 10 + .5 * 11.75) = 6.4375
    assert lambda_return(rewards, values, discounts, 0.5).flatten().tolist() == [6.4375, 11.75, 19.0]


def test_lambda_zero_is_the_one_step_return() -> None:
    rewards, values, discounts = random_rows()
    torch.testing.assert_close(lambda_return(rewards, values, discounts, 0.0), rewards + discounts * values)


def test_lambda_one_is_monte_carlo_and_bootstraps_only_at_the_end() -> None:
    rewards, values, discounts = random_rows()
    actual = lambda_return(rewards, values, discounts, 1.0)
    other = torch.cat([torch.randn_like(values[:-1]), values[-1:]])
    torch.testing.assert_close(lambda_return(rewards, other, discounts, 1.0), actual)
    assert actual[0, 0].item() == pytest.approx(n_step(*(x[:, 0].numpy() for x in (rewards, values, discounts)), 0, 7))


def test_nothing_after_a_terminal_state_counts() -> None:
    rewards, values, discounts = random_rows()
    discounts[3] = 0  # s_4 is terminal
    before = lambda_return(rewards, values, discounts, 0.95)
    torch.testing.assert_close(before[3], rewards[3])
    rewards[4:], values[3:], discounts[4:] = 1e6, -1e6, 0.5
    after = lambda_return(rewards, values, discounts, 0.95)
    torch.testing.assert_close(after[:4], before[:4])
    assert bool((after[4:] != before[4:]).all())


def test_the_end_of_the_horizon_bootstraps() -> None:
    rewards, values, discounts = random_rows()
    higher = values.clone()
    higher[-1] += 1
    gain = lambda_return(rewards, higher, discounts, 0.95) - lambda_return(rewards, values, discounts, 0.95)
    torch.testing.assert_close(gain[-1], discounts[-1])
    assert bool((gain > 0).all())


def test_gradients_flow_to_rewards_values_and_discounts() -> None:
    inputs = [x.requires_grad_() for x in random_rows(4, 2)]
    assert torch.autograd.gradcheck(lambda r, v, d: lambda_return(r, v, d, 0.9), inputs)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\).*\(4, 2\)"):
        lambda_return(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(3, 2), 0.95)


def test_discount_weights_against_a_loop() -> None:
    discounts = torch.rand(5, 3, dtype=torch.float64)
    discounts[2, 0] = 0  # s_3 is terminal: what follows has no weight, s_2 and before keep theirs
    actual = discount_weights(discounts)
    for b in range(3):
        weight = 1.0
        for t in range(5):
            assert actual[t, b].item() == pytest.approx(weight)
            weight *= discounts[t, b].item()
    assert actual[:3, 0].min() > 0 and actual[3:, 0].abs().sum() == 0


@pytest.mark.parametrize(
    ("progress", "horizon"), [(-1, 100), (0, 100), (0.5, 200), (0.75, 200 * 2**0.5), (1, 400), (2, 400)]
)
def test_the_horizon_of_a_moving_discount_grows_geometrically(progress: float, horizon: float) -> None:
    assert 1 / (1 - moving_discount(progress, 0.99, 0.9975)) == pytest.approx(horizon)
    assert 1 / (1 - moving_discount(1 - progress, 0.9975, 0.99)) == pytest.approx(horizon)
    assert moving_discount(progress, 0.99, 0.0) == 0.99


def test_a_lambda_for_every_step() -> None:
    rewards, values, discounts, lam = (torch.rand(6, 3) for _ in range(4))
    following, expected = values[-1], []
    for t in reversed(range(6)):
        following = rewards[t] + discounts[t] * ((1 - lam[t]) * values[t] + lam[t] * following)
        expected.insert(0, following)
    assert torch.equal(lambda_return(rewards, values, discounts, lam), torch.stack(expected))
    constant = lambda_return(rewards, values, discounts, torch.full((6, 3), 0.5))
    torch.testing.assert_close(constant, lambda_return(rewards, values, discounts, 0.5))
