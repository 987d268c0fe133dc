"""Small network parts: linear layers with DreamerV3's initialisation, norms, MLPs, encoders and decoders.

Images travel as (N, H, W, C), which is PyTorch's channels-last memory, the fast layout on CPU: normalising over
channels is then normalising over the last axis, and viewing as (N, C, H, W) for a convolution costs nothing.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.distributions import symlog
from worldmodel.errors import UsageError

NormKind = Literal["rms", "layer"]


def trunc_normal_(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Normal truncated at two sigma, corrected to variance 1/fan_in, times `scale` (DreamerV3's `trunc_normal_in`)."""
    with torch.no_grad():
        nn.init.trunc_normal_(weight, 0.0, 1.0, -2.0, 2.0)
        weight.mul_(scale * 1.1368 * math.sqrt(1 / fan_in))


class Linear(nn.Linear):
    """`nn.Linear` with DreamerV3's initialisation; `fan_in` differs from `inputs` where one layer is split in parts."""

    def __init__(self, inputs: int, outputs: int, *, scale: float = 1.0, bias: bool = True, fan_in: int | None = None):
        super().__init__(inputs, outputs, bias)
        trunc_normal_(self.weight, fan_in or inputs, scale)
        if bias:
            nn.init.zeros_(self.bias)


class BlockLinear(nn.Module):
    """`blocks` independent linear layers side by side: (..., inputs) -> (..., outputs), each block sees only its slice.

    The initial variance is that of the full input width (DreamerV3), `blocks` times smaller than per-block fan-in.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, *, bias: bool = True, fan_in: int | None = None):
        super().__init__()
        if inputs % blocks or outputs % blocks:
            raise UsageError(f"{inputs} inputs and {outputs} outputs do not divide into {blocks} blocks")
        self.blocks = blocks
        self.weight = nn.Parameter(torch.empty(blocks, inputs // blocks, outputs // blocks))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        trunc_normal_(self.weight, fan_in or inputs)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.reshape(-1, self.blocks, self.weight.shape[1]).transpose(0, 1)  # (G, N, in/G)
        out = torch.bmm(parts, self.weight).transpose(0, 1).reshape(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class Norm(nn.Module):
    """Normalisation of the last axis with a learned scale: RMSNorm (DreamerV3) or the faster LayerNorm, eps 1e-4."""

    def __init__(self, width: int, kind: NormKind):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, self.weight.shape, self.weight, None, 1e-4)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-4)  # one dtype: the fused kernel


def dense(inputs: int, outputs: int, norm: NormKind) -> nn.Sequential:
    """Linear, norm, SiLU: the layer that everything here is built from."""
    return nn.Sequential(Linear(inputs, outputs), Norm(outputs, norm), nn.SiLU())


class MLP(nn.Sequential):
    """(..., inputs) -> (..., outputs): `layers` dense layers of `units`, then a linear one, initially times `scale`."""

    def __init__(self, inputs: int, units: int, layers: int, outputs: int, norm: NormKind, *, scale: float = 1.0):
        widths = [inputs] + [units] * layers
        hidden = [dense(a, b, norm) for a, b in pairwise(widths)]
        super().__init__(*hidden, Linear(widths[-1], outputs, scale=scale))


class _Conv(nn.Module):
    """Convolution (or its transpose) on channels-last images, initialised with fan-in k k C."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d):
        super().__init__()
        self.conv = conv.to(memory_format=torch.channels_last)
        trunc_normal_(conv.weight, conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1])
        nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class _Pool(nn.Module):
    """2x2 max-pooling of (N, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class _Up(nn.Module):
    """Nearest-neighbour 2x upsampling of (N, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="nearest").permute(0, 2, 3, 1)


class _Patches(nn.Module):
    """(N, H, W, C) -> (N, H / 4, W / 4, 16 C): every 4x4 patch as one vector, a strided convolution's input."""

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        return x.reshape(n, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(n, h // 4, w // 4, 16 * c)


def _grid(size: int) -> int:
    if size % 16:
        raise UsageError(
            f"images of {size} pixels cannot be encoded: --env.image-size must be a multiple of 16, e.g. 64"
        )
    return size // 16


class PatchEncoder(nn.Module):
    """(N, S, S, C) in [-0.5, 0.5] -> (N, width): 4x4 patches, two strided 3x3 convolutions, a linear layer.

    Ours, for CPUs: 64x64 pixels cost 3.3 MMAC, against 75 for DreamerV3's encoder of 16 channels. The patches have no
    norm: on the largest map it would cost as much as a convolution.
    """

    def __init__(self, size: int, channels: int, depth: int, width: int, norm: NormKind):
        super().__init__()
        side = _grid(size)
        self.net = nn.Sequential(
            _Patches(), Linear(16 * channels, depth), nn.SiLU(),
            _Conv(nn.Conv2d(depth, 2 * depth, 3, 2, 1)), Norm(2 * depth, norm), nn.SiLU(),
            _Conv(nn.Conv2d(2 * depth, 4 * depth, 3, 2, 1)), Norm(4 * depth, norm), nn.SiLU(),
            nn.Flatten(), dense(side * side * 4 * depth, width, norm),
        )  # fmt: skip
        self.width = width

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


class PatchDecoder(nn.Module):
    """(N, F) -> (N, S, S, C) before the sigmoid: the mirror of `PatchEncoder`, patches painted by a pixel shuffle."""

    def __init__(self, inputs: int, size: int, channels: int, depth: int, norm: NormKind):
        super().__init__()
        self.side, self.channels = _grid(size), channels
        self.linear = nn.Sequential(Linear(inputs, self.side**2 * 4 * depth))
        self.net = nn.Sequential(
            Norm(4 * depth, norm), nn.SiLU(),
            _Conv(nn.ConvTranspose2d(4 * depth, 2 * depth, 4, 2, 1)), Norm(2 * depth, norm), nn.SiLU(),
            _Conv(nn.ConvTranspose2d(2 * depth, depth, 4, 2, 1)), Norm(depth, norm), nn.SiLU(),
            Linear(depth, 16 * channels),
        )  # fmt: skip

    def forward(self, features: Tensor) -> Tensor:
        x = self.net(self.linear(features).reshape(len(features), self.side, self.side, -1))
        n, h, w, _ = x.shape
        return x.reshape(n, h, w, 4, 4, self.channels).transpose(2, 3).reshape(n, h * 4, w * 4, self.channels)


class PaperEncoder(nn.Module):
    """DreamerV3's encoder: four times 5x5 convolution, 2x2 max-pool, norm, SiLU; channels depth x (2, 3, 4, 4)."""

    def __init__(self, size: int, channels: int, depth: int, norm: NormKind):
        super().__init__()
        side, widths = _grid(size), [channels] + [depth * m for m in (2, 3, 4, 4)]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [_Conv(nn.Conv2d(a, b, 5, 1, 2)), _Pool(), Norm(b, norm), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Flatten())
        self.width = side * side * widths[-1]

    def forward(self, image: Tensor) -> Tensor:
        return self.net(image)


class PaperDecoder(nn.Module):
    """DreamerV3's decoder: a block-linear map of deter plus an MLP of stoch, then upsampling and 5x5 convolutions."""

    def __init__(self, deter: int, stoch: int, size: int, channels: int, depth: int, units: int, norm: NormKind):
        super().__init__()
        self.deter, self.side, self.blocks = deter, _grid(size), 8
        widths = [depth * m for m in (4, 4, 3, 2)] + [channels]
        grid = self.side**2 * widths[0]
        self.from_deter = BlockLinear(deter, grid, self.blocks)
        self.from_stoch = nn.Sequential(dense(stoch, 2 * units, norm), Linear(2 * units, grid))
        self.start = nn.Sequential(Norm(widths[0], norm), nn.SiLU())
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            layers += [_Up(), _Conv(nn.Conv2d(a, b, 5, 1, 2))]
            layers += [Norm(b, norm), nn.SiLU()] if i < 3 else []
        self.net = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        deter, stoch = features.split([self.deter, features.shape[-1] - self.deter], -1)
        n, side, groups = len(features), self.side, self.blocks
        # Block g of deter paints channel group g of every cell of the grid.
        spatial = self.from_deter(deter).reshape(n, groups, side, side, -1).permute(0, 2, 3, 1, 4)
        x = spatial.reshape(n, side, side, -1) + self.from_stoch(stoch).reshape(n, side, side, -1)
        return self.net(self.start(x))


class VectorEncoder(nn.Module):
    """Vectors (N, D), squashed by symlog, -> (N, units)."""

    def __init__(self, inputs: int, units: int, layers: int, norm: NormKind):
        super().__init__()
        widths = [inputs] + [units] * layers
        self.net = nn.Sequential(*[dense(a, b, norm) for a, b in pairwise(widths)])
        self.width = units

    def forward(self, vector: Tensor) -> Tensor:
        return self.net(symlog(vector))
