"""Layers against slow references: loops over blocks, explicit geometry of images, statistics of the initialisation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tiny import expect_equal, shake
from torch import Tensor, nn

from worldmodel.distributions import symlog
from worldmodel.errors import UsageError
from worldmodel.nets import (
    MLP,
    BlockLinear,
    Linear,
    Norm,
    PaperDecoder,
    PaperEncoder,
    PatchDecoder,
    PatchEncoder,
    VectorEncoder,
    _Conv,
    _Patches,
    _Pool,
    _Up,
    dense,
    trunc_normal_,
)

# -- initialisation ---------------------------------------------------------------------------------------------------


def expect_fan_in(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Variance 1 / fan_in (the truncation is corrected for), and truncated at two sigma of the uncorrected normal."""
    sigma = scale / math.sqrt(fan_in)
    assert weight.numel() > 4000, "too few weights to tell"
    assert weight.std().item() == pytest.approx(sigma, rel=0.04)
    assert abs(weight.mean().item()) < 0.06 * sigma
    assert 2.2 * sigma < weight.abs().max().item() <= 2 * 1.1368 * sigma * 1.0001


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_truncated_normal(scale: float) -> None:
    weight = torch.empty(100, 100)
    trunc_normal_(weight, 400, scale)
    expect_fan_in(weight, 400, scale)


def test_every_kind_of_layer_starts_with_its_fan_in_and_zero_bias() -> None:
    linear = Linear(120, 90)
    split = Linear(120, 90, fan_in=1000)
    block = BlockLinear(256, 256, 8)
    conv = _Conv(nn.Conv2d(12, 40, 5, 1, 2))
    transposed = _Conv(nn.ConvTranspose2d(20, 24, 4, 2, 1))
    expect_fan_in(linear.weight, 120)
    expect_fan_in(split.weight, 1000)
    expect_fan_in(block.weight, 256)  # the full width (DreamerV3), not that of a block
    expect_fan_in(conv.conv.weight, 12 * 5 * 5)
    expect_fan_in(transposed.conv.weight, 20 * 4 * 4)
    for layer in (linear, split, block, conv.conv, transposed.conv):
        assert not layer.bias.any()


def test_layers_keep_the_variance_at_the_start() -> None:
    x = torch.randn(500, 128)
    assert Linear(128, 128)(x).std().item() == pytest.approx(1, rel=0.1)


def test_output_scale_zero_gives_exactly_zero() -> None:
    net = MLP(6, 16, 2, 5, "rms", scale=0.0)
    assert torch.equal(net(torch.randn(3, 6)), torch.zeros(3, 5))
    assert MLP(6, 16, 2, 5, "rms", scale=0.01)(torch.randn(300, 6)).std().item() == pytest.approx(0.006, rel=0.4)


# -- dense layers -----------------------------------------------------------------------------------------------------


def slow_norm(x: Tensor, weight: Tensor, kind: str) -> Tensor:
    rows = []
    for row in x.reshape(-1, x.shape[-1]).double():
        centred = row - row.mean() if kind == "layer" else row
        rows.append(centred / math.sqrt((centred * centred).mean().item() + 1e-4) * weight.double())
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norm_against_a_loop(kind: str) -> None:
    norm = shake(Norm(6, kind), 0.5)
    x = torch.randn(2, 3, 6) * torch.tensor([0.001, 1.0, 100.0])[:, None] + 0.3
    expect_equal(norm(x), slow_norm(x, norm.weight.detach(), kind).float())
    assert [name for name, _ in norm.named_parameters()] == ["weight"]


@pytest.mark.filterwarnings("ignore:Mismatch dtype")
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_statistics_of_a_norm_stay_in_float32(kind: str) -> None:
    """Sums of 512 squares in bfloat16 would be wrong by percents."""
    norm, x = Norm(512, kind), (3 * torch.randn(4, 512) + 50).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    torch.testing.assert_close(out.float(), norm(x.float()), rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("bias", [True, False])
def test_block_linear_is_independent_linear_layers(bias: bool) -> None:
    layer = shake(BlockLinear(6, 9, 3, bias=bias))
    x = torch.randn(2, 5, 6)
    out = layer(x)
    assert out.shape == (2, 5, 9)
    for g in range(3):
        expected = x[..., 2 * g : 2 * g + 2] @ layer.weight[g]
        expected = expected + layer.bias[3 * g : 3 * g + 3] if bias else expected
        expect_equal(out[..., 3 * g : 3 * g + 3], expected)
    touched = x.clone()
    touched[..., 2:4] += 1
    changed = (layer(touched) != out).any(0).any(0)
    assert changed.tolist() == [False] * 3 + [True] * 3 + [False] * 3


def test_block_linear_refuses_widths_that_do_not_divide() -> None:
    with pytest.raises(UsageError, match=r"10 inputs.*3 blocks"):
        BlockLinear(10, 9, 3)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_mlp_is_linear_norm_silu_repeated_then_linear(kind: str) -> None:
    net = shake(MLP(4, 6, 2, 3, kind))
    parameters = [p.detach().double() for p in net.parameters()]
    assert [tuple(p.shape) for p in parameters] == [(6, 4), (6,), (6,), (6, 6), (6,), (6,), (3, 6), (3,)]
    w1, b1, n1, w2, b2, n2, w3, b3 = parameters
    x = torch.randn(5, 4)
    y = x.double()
    for w, b, n in ((w1, b1, n1), (w2, b2, n2)):
        y = slow_norm(y @ w.T + b, n, kind)
        y = y / (1 + torch.exp(-y))
    expect_equal(net(x), (y @ w3.T + b3).float())


def test_vector_encoder_squashes_by_symlog_and_ends_in_an_activation() -> None:
    net = shake(VectorEncoder(3, 8, 2, "layer"))
    x = torch.tensor([[1e6, -30.0, 0.1]])
    expected = symlog(x)
    assert len(net.net) == 2 and net.width == 8
    for layer in net.net:
        assert isinstance(layer[2], nn.SiLU)
        expected = F.silu(F.layer_norm(layer[0](expected), (8,), layer[1].weight, None, 1e-4))
    expect_equal(net(x), expected)


# -- images: layers keep (N, H, W, C) ---------------------------------------------------------------------------------

LAYERS = {
    "same": lambda: _Conv(nn.Conv2d(2, 3, 5, 1, 2)),
    "strided": lambda: _Conv(nn.Conv2d(2, 3, 3, 2, 1)),
    "transposed": lambda: _Conv(nn.ConvTranspose2d(2, 3, 4, 2, 1)),
    "pool": _Pool,
    "up": _Up,
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_transposed_image_gives_a_transposed_map(kind: str) -> None:
    """Height and width must not be mixed up with each other or with channels; 8 x 4 shows it, a square may not."""
    layer = LAYERS[kind]()
    image = torch.randn(2, 8, 4, 2)
    out = layer(image)
    if isinstance(layer, _Conv):
        with torch.no_grad():
            layer.conv.weight.copy_(layer.conv.weight.transpose(-1, -2).clone())
    turned = layer(image.transpose(1, 2))
    expect_equal(turned.transpose(1, 2), out)
    assert out.shape[1] == 2 * out.shape[2] and out.shape[3] == (3 if isinstance(layer, _Conv) else 2)


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_at_a_place_stays_at_that_place(kind: str) -> None:
    layer = LAYERS[kind]()
    dark, lit = torch.zeros(1, 8, 8, 2), torch.zeros(1, 8, 8, 2)
    lit[0, 6, 1] = 1.0
    difference = (layer(lit) - layer(dark)).abs().sum(-1)[0]
    rows, columns = (difference.sum(1) > 1e-9).nonzero().flatten(), (difference.sum(0) > 1e-9).nonzero().flatten()
    scale = difference.shape[0] / 8
    assert abs(rows.float().mean().item() - 6.5 * scale + 0.5) <= 1.01
    assert abs(columns.float().mean().item() - 1.5 * scale + 0.5) <= 1.01
    assert len(rows) <= 5 and len(columns) <= 5


def test_convolution_against_a_loop() -> None:
    layer = shake(_Conv(nn.Conv2d(2, 3, 3, 2, 1)))
    image, weight, bias = torch.randn(1, 5, 7, 2), layer.conv.weight, layer.conv.bias
    out = layer(image)
    assert out.shape == (1, 3, 4, 3)
    for i in range(3):
        for j in range(4):
            expected = bias.clone()
            for di in range(3):
                for dj in range(3):
                    r, c = 2 * i + di - 1, 2 * j + dj - 1
                    if 0 <= r < 5 and 0 <= c < 7:
                        expected = expected + weight[:, :, di, dj] @ image[0, r, c]
            expect_equal(out[0, i, j], expected)


# -- patches ----------------------------------------------------------------------------------------------------------


def test_a_pixel_lands_in_its_patch() -> None:
    image = torch.arange(2 * 8 * 12 * 3, dtype=torch.float32).reshape(2, 8, 12, 3)
    patches = _Patches()(image)
    assert patches.shape == (2, 2, 3, 48)
    for n, i, j in ((0, 0, 0), (1, 1, 2), (0, 1, 0), (1, 0, 2)):
        assert torch.equal(patches[n, i, j], image[n, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(-1))


def test_patches_and_a_linear_layer_are_a_convolution_of_stride_four() -> None:
    encoder = shake(PatchEncoder(16, 3, 4, 8, "layer"))
    image = torch.rand(2, 16, 16, 3) - 0.5
    linear = encoder.net[1]
    kernel = linear.weight.reshape(4, 4, 4, 3).permute(0, 3, 1, 2)
    expected = F.conv2d(image.permute(0, 3, 1, 2), kernel, linear.bias, stride=4).permute(0, 2, 3, 1)
    expect_equal(linear(encoder.net[0](image)), expected)
    for layer in list(encoder.net)[2:]:
        expected = layer(expected)
    expect_equal(encoder(image), expected)
    assert encoder(image).shape == (2, 8) and encoder.width == 8


def test_painted_patches_land_where_they_should() -> None:
    """The pixel shuffle: cell (i, j) of the last map paints pixels 4i ... 4i+3, 4j ... 4j+3, rows before columns."""
    decoder = PatchDecoder(10, 32, 3, 4, "layer")
    side = decoder.side
    image = torch.rand(2, 4 * side, 4 * side, 3)
    cells = [
        torch.cat([image[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(2, 48)])
        for i in range(side)
        for j in range(side)
    ]
    decoder.linear, decoder.net = nn.Identity(), nn.Identity()
    assert torch.equal(decoder(torch.stack(cells, 1).flatten(1)), image)


@pytest.mark.parametrize(("i", "j"), [(0, 3), (3, 0)])
def test_every_cell_of_the_patch_decoder_paints_its_own_corner(i: int, j: int) -> None:
    """Of 4 x 4 cells of 16 pixels; two transposed convolutions spread each over at most 12 pixels more."""
    decoder = shake(PatchDecoder(10, 64, 3, 4, "layer"))
    features = torch.randn(1, 10)
    before = decoder(features)
    with torch.no_grad():
        decoder.linear[0].bias.view(4, 4, 16)[i, j] += torch.randn(16)
    moved = (decoder(features) - before).detach().abs().sum(-1)[0]
    near = [slice(0, 28) if k == 0 else slice(36, 64) for k in (i, j)]
    assert before.shape == (1, 64, 64, 3)
    assert moved[16 * i : 16 * i + 16, 16 * j : 16 * j + 16].min() > 0
    moved[near[0], near[1]] = 0
    assert moved.sum() == 0


# -- DreamerV3's encoder and decoder ----------------------------------------------------------------------------------


def test_paper_encoder_is_convolve_pool_normalise_activate() -> None:
    encoder = shake(PaperEncoder(32, 3, 2, "rms"))
    image = torch.rand(2, 32, 32, 3) - 0.5
    x = image.permute(0, 3, 1, 2)
    convs = [m.conv for m in encoder.net if isinstance(m, _Conv)]
    norms = [m for m in encoder.net if isinstance(m, Norm)]
    assert [c.out_channels for c in convs] == [4, 6, 8, 8] and {c.kernel_size for c in convs} == {(5, 5)}
    for conv, norm in zip(convs, norms, strict=True):
        x = F.conv2d(x, conv.weight, conv.bias, padding=2)
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
        x = F.silu(x / (x.square().mean(1, keepdim=True) + 1e-4).sqrt() * norm.weight[None, :, None, None])
    assert encoder.width == 2 * 2 * 8 and encoder(image).shape == (2, 32)
    expect_equal(encoder(image), x.permute(0, 2, 3, 1).flatten(1))


def test_paper_decoder_is_upsample_convolve_normalise_activate() -> None:
    decoder = shake(PaperDecoder(16, 6, 32, 3, 4, 8, "rms"))
    deter, stoch = torch.randn(2, 16), torch.randn(2, 6)
    grid = torch.zeros(2, 2, 2, 16)
    for g in range(8):  # block g of deter paints channel group g
        painted = (
            deter[:, 2 * g : 2 * g + 2] @ decoder.from_deter.weight[g] + decoder.from_deter.bias[8 * g : 8 * g + 8]
        )
        grid[..., 2 * g : 2 * g + 2] = painted.reshape(2, 2, 2, 2)
    x = grid + decoder.from_stoch(stoch).reshape(2, 2, 2, 16)
    x = F.silu(slow_norm(x, decoder.start[0].weight, "rms").float()).permute(0, 3, 1, 2)
    convs = [m.conv for m in decoder.net if isinstance(m, _Conv)]
    norms = [m for m in decoder.net if isinstance(m, Norm)]
    assert [c.out_channels for c in convs] == [16, 12, 8, 3] and len(norms) == 3
    for i, conv in enumerate(convs):
        x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
        x = F.conv2d(x, conv.weight, conv.bias, padding=2)
        if i < 3:
            x = F.silu(x / (x.square().mean(1, keepdim=True) + 1e-4).sqrt() * norms[i].weight[None, :, None, None])
    out = decoder(torch.cat([deter, stoch], -1))
    assert out.shape == (2, 32, 32, 3)
    expect_equal(out, x.permute(0, 2, 3, 1), 1e-4)
    widths = [m.out_features for m in decoder.from_stoch.modules() if isinstance(m, nn.Linear)]
    assert widths == [16, 64]  # DreamerV3: 2 units, then the grid


@pytest.mark.parametrize("size", [16, 64, 96])
def test_sizes_that_are_multiples_of_sixteen(size: int) -> None:
    image = torch.zeros(1, size, size, 3)
    assert PatchEncoder(size, 3, 4, 8, "layer")(image).shape == (1, 8)
    assert PatchDecoder(8, size, 3, 4, "layer")(torch.zeros(1, 8)).shape == image.shape
    encoder = PaperEncoder(size, 3, 2, "rms")
    assert encoder(image).shape == (1, encoder.width)
    assert PaperDecoder(16, 6, size, 3, 4, 8, "rms")(torch.zeros(1, 22)).shape == image.shape


@pytest.mark.parametrize("make", [
    lambda s: PatchEncoder(s, 3, 4, 8, "layer"), lambda s: PatchDecoder(8, s, 3, 4, "layer"),
    lambda s: PaperEncoder(s, 3, 2, "rms"), lambda s: PaperDecoder(16, 6, s, 3, 4, 8, "rms"),
])  # fmt: skip
def test_other_sizes_are_refused_with_the_flag_to_set(make) -> None:
    with pytest.raises(UsageError, match=r"84 pixels.*--env.image-size"):
        make(84)


def test_dense_is_linear_norm_silu() -> None:
    layer = shake(dense(3, 5, "layer"))
    x = torch.randn(4, 3)
    expect_equal(layer(x), F.silu(F.layer_norm(layer[0](x), (5,), layer[1].weight, None, 1e-4)))
