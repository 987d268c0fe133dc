"""Every test runs on one thread, as the machine is shared, and draws the same numbers each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from worldmodel.distributions import OneHot
from worldmodel.models.mdn_rnn import Mixture
from worldmodel.models.vae import Gaussian


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def noiseless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents and discrete actions are the likeliest class, or the mean of the likeliest Gaussian, not a sample."""
    for kind in (OneHot, Gaussian, Mixture):
        monkeypatch.setattr(kind, "sample", kind.mode)
