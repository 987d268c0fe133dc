"""Measuring must not disturb what is measured, and must come out the same however the work is split.

`local_randomness` borrows the global generators and gives them back. `RowNoise` gives every row of a batch its own
stream, so that an episode's noise depends on its seed alone: not on its neighbours, the batch or the number of workers.
`TiledNoise` gives rivals the same noise.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def local_randomness(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within, all global generators (random, numpy, torch on the CPU and on `device`) start from `seed`; afterwards
    they are back where they were, so that a training that is evaluated goes on as if it were not."""
    device = torch.device(device)
    cuda = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda):
        try:
            seed_everything(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def seed_everything(seed: int) -> None:
    """Sets the global generators of python, numpy and torch, from which environments and policies of users may draw."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(*key: int) -> torch.Generator:
    """A CPU generator of its own for every key; those of (1,), (2,), (1, 2) and (2, 1) are unrelated."""
    digest = hashlib.sha256(repr(tuple(int(k) for k in key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class RowNoise(TorchFunctionMode):
    """Within, noise of B rows, drawn without a generator of its own, takes row b from `generators[b]`.

    Worlds and policies draw their samples with `torch.rand`, `randn`, `rand_like`, `randn_like`, `normal` or
    `multinomial`, one row a trajectory; these are intercepted when their first dimension is B = len(generators). The
    noise is made on the CPU and moved, so it is the same on every device. Other draws come from the global generators.
    `generators` is a list that its owner may change between two steps.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.generators = generators

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        draw = _DRAWS.get(func)
        if draw is not None and kwargs.get("generator") is None:
            noise = draw(self.generators, args, kwargs)
            if noise is not None:
                return noise
        return func(*args, **kwargs)


def _sized(draw: Callable[..., Tensor]) -> Callable[..., Tensor | None]:
    def rows(generators: Sequence[torch.Generator], args: tuple, kwargs: dict) -> Tensor | None:
        size = kwargs.get("size", args)
        size = size[0] if len(size) == 1 and not isinstance(size[0], int) else size
        return _rows(draw, generators, tuple(size), kwargs.get("dtype"), kwargs.get("device"))

    return rows


def _alike(draw: Callable[..., Tensor]) -> Callable[..., Tensor | None]:
    def rows(generators: Sequence[torch.Generator], args: tuple, kwargs: dict) -> Tensor | None:
        like = args[0] if args else kwargs["input"]
        dtype, device = (kwargs.get("dtype") or like.dtype, kwargs.get("device") or like.device)
        return _rows(draw, generators, tuple(like.shape), dtype, device)

    return rows


def _normal(generators: Sequence[torch.Generator], args: tuple, kwargs: dict) -> Tensor | None:
    mean = kwargs.get("mean", args[0] if args else None)
    std = kwargs.get("std", args[1] if len(args) > 1 else 1.0)
    if not isinstance(mean, Tensor) or "out" in kwargs:
        return None
    noise = _rows(torch.randn, generators, tuple(mean.shape), mean.dtype, mean.device)
    return None if noise is None else mean + std * noise


def _multinomial(generators: Sequence[torch.Generator], args: tuple, kwargs: dict) -> Tensor | None:
    probs = args[0] if args else kwargs["input"]
    if probs.ndim != 2 or len(probs) != len(generators) or "out" in kwargs:
        return None
    count = args[1] if len(args) > 1 else kwargs["num_samples"]
    replacement = args[2] if len(args) > 2 else kwargs.get("replacement", False)
    rows = zip(probs.detach().cpu(), generators, strict=True)
    return torch.stack([torch.multinomial(p, count, replacement, generator=g) for p, g in rows]).to(probs.device)


def _rows(
    draw: Callable[..., Tensor], generators: Sequence[torch.Generator], size: tuple[int, ...], dtype: Any, device: Any
) -> Tensor | None:
    if not size or size[0] != len(generators):
        return None
    return torch.stack([draw(size[1:], generator=g, dtype=dtype) for g in generators]).to(device or "cpu")


class TiledNoise(TorchFunctionMode):
    """Within, a batch of `copies` x `rows` trajectories, copy after copy, draws noise for one copy and gives it to all:
    rivals are compared under the same luck, and less is drawn.

    Draws of `torch.rand`, `randn`, `rand_like` and `randn_like` whose first dimension is copies x rows, without a
    generator of their own, are tiled; others, dropout, `normal` and `multinomial` among them, stay.
    """

    def __init__(self, copies: int, rows: int) -> None:
        super().__init__()
        self.copies, self.rows = copies, rows

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is None and self.copies > 1:
            if func in (torch.rand, torch.randn):
                size = kwargs.get("size", args)
                size = tuple(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
                if self._whole(size):
                    rest = {key: value for key, value in kwargs.items() if key != "size"}
                    return self._tiled(func((self.rows, *size[1:]), **rest))
            elif func in (torch.rand_like, torch.randn_like):
                like = args[0] if args else kwargs["input"]
                if self._whole(tuple(like.shape)):
                    return self._tiled(func(like[: self.rows], **{k: v for k, v in kwargs.items() if k != "input"}))
        return func(*args, **kwargs)

    def _whole(self, size: tuple[int, ...]) -> bool:
        return bool(size) and size[0] == self.copies * self.rows

    def _tiled(self, noise: Tensor) -> Tensor:
        return noise.repeat(self.copies, *[1] * (noise.ndim - 1))


_DRAWS: dict[Callable, Callable[..., Tensor | None]] = {
    torch.rand: _sized(torch.rand),
    torch.randn: _sized(torch.randn),
    torch.rand_like: _alike(torch.rand),
    torch.randn_like: _alike(torch.randn),
    torch.normal: _normal,
    torch.multinomial: _multinomial,
}
