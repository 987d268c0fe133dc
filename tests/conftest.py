"""Every test runs on one thread, as the machine is shared, and draws the same numbers each time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from worldmodel.distributions import OneHot


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
    """Latents and discrete actions are the likeliest class instead of a sample."""
    monkeypatch.setattr(OneHot, "sample", OneHot.mode)
