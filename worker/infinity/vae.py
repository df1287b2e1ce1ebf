"""The convolutional VAE between pixels and the codes' space. Module names are those of the official files."""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, pad

from toprovar_batch.kernels.ops import PYTORCH, Backend, group_norm_swish, residual_add

from .config import VaeArchitecture

_EPS = 1e-6
_GROUPS = 32
_ENCODER_BLOCKS = 2
_DECODER_BLOCKS = 3


class _Maps(NamedTuple):
    """What one operation of the fused decoder leaves to the next.

    Attributes:
        values: [B, C, H, W] channels-last.
        bias: [C], still to be added to the values: that of the convolution that made them.
        statistics: of the values, where their maker has measured them for the norm that follows.
    """

    values: Tensor
    bias: Tensor | None = None
    statistics: Tensor | None = None


def _convolve(conv: nn.Conv2d, x: Tensor) -> _Maps:
    """The convolution, its bias left to be added: PyTorch would make a pass of its own over the output for it."""
    return _Maps(conv2d(x, conv.weight, padding=conv.kernel_size[0] // 2), conv.bias)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor:
    """Two biases [C] as one, in float32 where there are two."""
    given = [bias for bias in (first, second) if bias is not None]
    return given[0] if len(given) == 1 else given[0].float() + given[1]


class NormSwish(nn.GroupNorm):
    """GroupNorm over 32 groups, then swish."""

    def __init__(self, channels: int) -> None:
        super().__init__(_GROUPS, channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return self.fused(_Maps(x), PYTORCH)

    def fused(self, x: _Maps, backend: Backend) -> Tensor:
        """The same of `x.values` + `x.bias`."""
        return group_norm_swish(
            x.values, self.weight, self.bias, _GROUPS, self.eps,
            input_bias=x.bias, statistics=x.statistics, backend=backend,
        )  # fmt: skip


class ResidualBlock(nn.Module):
    """Norm, swish, conv, twice; a 1x1 shortcut where the widths differ."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = NormSwish(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = NormSwish(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to [B, C_out, H, W]."""
        hidden = self.conv1(self.norm1(x))
        hidden = self.conv2(self.norm2(hidden))
        return hidden + (x if self.nin_shortcut is None else self.nin_shortcut(x))

    def fused(self, x: _Maps, backend: Backend) -> _Maps:
        """The same, without a gradient, and with every bias added where its maps are read anyway."""
        hidden = _convolve(self.conv1, self.norm1.fused(x, backend))
        hidden = _convolve(self.conv2, self.norm2.fused(hidden, backend))
        shortcut = self._shortcut(x)
        bias = _sum(hidden.bias, shortcut.bias)
        total, statistics = residual_add(hidden.values, bias, shortcut.values, _GROUPS, backend=backend)
        return _Maps(total, statistics=statistics)

    def _shortcut(self, x: _Maps) -> _Maps:
        if self.nin_shortcut is None:
            return x
        maps = _convolve(self.nin_shortcut, x.values)
        if x.bias is None:
            return maps
        weight = self.nin_shortcut.weight[:, :, 0, 0].float()
        return maps._replace(bias=_sum(weight @ x.bias.float(), maps.bias))


class Upsample(nn.Module):
    """Nearest neighbour x2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W]."""
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))

    def fused(self, x: _Maps) -> _Maps:
        """The same, but for the bias, which is left to be added."""
        assert x.bias is None  # a residual block has added it
        return _convolve(self.conv, _doubled(x.values))


def _doubled(maps: Tensor) -> Tensor:
    """Nearest neighbour x2 of channels-last maps [B, C, H, W], as one copy; PyTorch's own kernel takes seven times as long."""
    rows = maps.permute(0, 2, 3, 1)
    if rows.is_contiguous() and maps.shape[1] * maps.element_size() % 8 == 0:
        rows = rows.view(torch.int64)  # several channels as one number
    batch, height, width, channels = rows.shape
    copies = rows[:, :, None, :, None].expand(batch, height, 2, width, 2, channels)
    doubled = copies.reshape(batch, 2 * height, 2 * width, channels)
    return doubled.view(maps.dtype).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """A convolution of stride 2, padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H / 2, W / 2]."""
        return self.conv(pad(x, (0, 1, 0, 1)))


class MiddleBlocks(nn.Module):
    """Two residual blocks at the coarsest level."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return self.block_2(self.block_1(x))


class Level(nn.Module):
    """Residual blocks of one resolution, and the change to the next where there is one."""

    def __init__(self, in_channels: int, out_channels: int, num_blocks: int) -> None:
        super().__init__()
        self.upsample: Upsample | None = None
        self.downsample: Downsample | None = None
        widths = [in_channels] + [out_channels] * num_blocks
        self.block = nn.ModuleList(ResidualBlock(first, second) for first, second in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C_in, H, W] to the next level's channels and size."""
        for block in self.block:
            x = block(x)
        resize = self.upsample or self.downsample
        return x if resize is None else resize(x)

    def fused(self, x: _Maps, backend: Backend) -> _Maps:
        """The same of a level of the decoder."""
        for block in self.block:
            assert isinstance(block, ResidualBlock)
            x = block.fused(x, backend)
        return x if self.upsample is None else self.upsample.fused(x)


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in [-1, 1] to features [B, z, H / f, W / f]."""

    def __init__(self, sizes: VaeArchitecture) -> None:
        super().__init__()
        widths = [sizes.base_channels * multiplier for multiplier in sizes.channel_multipliers]
        self.conv_in = nn.Conv2d(3, sizes.base_channels, 3, padding=1)
        self.down = nn.ModuleList(
            Level(first, second, _ENCODER_BLOCKS)
            for first, second in zip([sizes.base_channels, *widths], widths, strict=False)
        )
        for level, width in zip(self.down[:-1], widths, strict=False):
            level.downsample = Downsample(width)
        self.mid = MiddleBlocks(widths[-1])
        self.norm_out = NormSwish(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], sizes.codebook_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] to [B, z, H / f, W / f]."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_out(self.mid(x)))


class Decoder(nn.Module):
    """Summed codes [B, z, H / f, W / f] to pixels [B, 3, H, W], nominally in [-1, 1]."""

    def __init__(self, sizes: VaeArchitecture) -> None:
        super().__init__()
        widths = [sizes.base_channels * multiplier for multiplier in sizes.channel_multipliers]
        self.conv_in = nn.Conv2d(sizes.codebook_dim, widths[-1], 3, padding=1)
        self.mid = MiddleBlocks(widths[-1])
        self.up = nn.ModuleList(
            Level(before, width, _DECODER_BLOCKS)
            for before, width in zip([*widths[1:], widths[-1]], widths, strict=True)
        )
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level.upsample = Upsample(width)
        self.norm_out = NormSwish(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, codes: Tensor, backend: Backend = PYTORCH) -> Tensor:
        """[B, z, h, w] to [B, 3, h * f, w * f]; on any backend but PyTorch's without a gradient."""
        if backend.name != "torch":
            return self._fused(codes, backend)
        x = self.mid(self.conv_in(codes))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))

    def _fused(self, codes: Tensor, backend: Backend) -> Tensor:
        """The same by kernels that make few passes over the maps."""
        x = _Maps(self.conv_in(codes.contiguous(memory_format=torch.channels_last)))
        for block in (self.mid.block_1, self.mid.block_2):
            x = block.fused(x, backend)
        for level in reversed(self.up):
            assert isinstance(level, Level)
            x = level.fused(x, backend)
        return self.conv_out(self.norm_out.fused(x, backend))


class Vae(nn.Module):
    """Decoder, and where it is wanted the encoder."""

    def __init__(self, sizes: VaeArchitecture, *, with_encoder: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.decoder = Decoder(sizes)
        if with_encoder:
            self.encoder = Encoder(sizes)

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self.decoder.conv_in.weight.dtype

    def decode(self, summed_codes: Tensor, backend: Backend = PYTORCH) -> Tensor:
        """[B, z, h, w] codes to [B, 3, H, W] float32 pixels, clamped to [-1, 1].

        Args:
            summed_codes: of any number of images.
            backend: which kernels run; only PyTorch's give a gradient.
        """
        return self._decode(summed_codes, backend).clamp(-1, 1)

    def decode_checked(self, summed_codes: Tensor, backend: Backend = PYTORCH) -> tuple[Tensor, Tensor]:
        """As `decode`; and [B] float32, on the same device, the largest magnitude of an image before the clamp.

        That is no finite number where any number of the image is none. It takes one launch.
        """
        pixels = self._decode(summed_codes, backend)
        return pixels.clamp(-1, 1), torch.linalg.vector_norm(pixels.flatten(1), math.inf, dim=1)

    def _decode(self, summed_codes: Tensor, backend: Backend) -> Tensor:
        return self.decoder(summed_codes.to(self.dtype), backend).float()


def to_uint8(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] to [B, H, W, 3] uint8, truncated as the official code does."""
    return ((pixels + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1)
