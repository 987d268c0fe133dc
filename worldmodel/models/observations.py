"""What every world does with observations: check images, forget at episode starts, score reconstructions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from worldmodel.distributions import symlog
from worldmodel.errors import UsageError


def masked(x: Tensor, is_first: Tensor) -> Tensor:
    """`x` (..., D) with zeros where an episode begins (...): nothing is carried over, not even a NaN."""
    return x.masked_fill(is_first.unsqueeze(-1), 0)


def image_shape(observations: dict[str, tuple[int, ...]], names: list[str]) -> tuple[int, int]:
    """(side, channels together) of the images; raises UsageError unless all are square and of one size."""
    sides = {side for name in names for side in observations[name][:2]}
    if len(sides) != 1:
        shapes = {name: observations[name] for name in names}
        raise UsageError(f"images must be square and of one size, not {shapes}: set --env.image-size, e.g. 64")
    return sides.pop(), sum(observations[name][2] for name in names)


def stacked_images(obs: dict[str, Tensor], names: list[str]) -> Tensor:
    """The named uint8 images side by side on the channels, (N, S, S, C) in 0 to 1, of autocast's dtype.

    Raises TypeError for an image that is not uint8.
    """
    images = [as_uint8(name, obs[name]) for name in names]
    together = images[0] if len(images) == 1 else torch.cat(images, -1)
    # Converted once, then in place: 8 bits fit bfloat16's precision, and memory traffic is what this costs.
    low = torch.is_autocast_enabled(together.device.type)
    dtype = torch.get_autocast_dtype(together.device.type) if low else torch.float32
    return together.to(dtype).mul_(1 / 255)


def as_uint8(name: str, image: Tensor) -> Tensor:
    """`image`; raises TypeError unless it is uint8."""
    if image.dtype != torch.uint8:
        raise TypeError(f"image {name!r} must be uint8 in 0..255 (it is normalised inside), not {image.dtype}")
    return image


def reconstruction_loss(prediction: Tensor, truth: Tensor) -> Tensor:
    """Sum of squares (N,): images (N, H, W, C) against uint8 / 255 after a sigmoid, vectors (N, D) in symlog space."""
    if truth.dtype == torch.uint8:
        return _ImageError.apply(prediction, truth)
    return (prediction.float() - symlog(truth.float())).square().flatten(1).sum(-1)


class _ImageError(torch.autograd.Function):
    """sum (sigmoid(prediction) - truth / 255)^2 per image, with its gradient 2 e p (1 - p).

    On CPU a few images at a time: what is computed on the way stays in the cache. Differentiable once.
    """

    CHUNK = 1 << 16
    """Pixel values that are computed together."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, truth: Tensor) -> Tensor:
        total = torch.empty(len(prediction), device=prediction.device)
        slope = torch.empty_like(prediction, memory_format=torch.contiguous_format)
        images = max(1, _ImageError.CHUNK // prediction.shape[1:].numel()) if prediction.is_cpu else len(prediction)
        parts = (x.split(images) for x in (prediction, truth, total, slope))
        for logits, seen, error, gradient in zip(*parts, strict=True):
            p = torch.sigmoid(logits.float())
            e = p - seen.float() / 255
            torch.sum(e.square().flatten(1), -1, out=error)
            gradient.copy_(e.mul_(2).mul_(p.addcmul(p, p, value=-1)))
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, None]:
        slope: Tensor = ctx.saved_tensors[0]
        return slope * weight.to(slope.dtype).reshape(-1, *[1] * (slope.ndim - 1)), None
