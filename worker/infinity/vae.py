"""The convolutional VAE between pixels and the codes' space. Module names are those of the official files."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad, silu

from .config import VaeArchitecture

_EPS = 1e-6
_GROUPS = 32
_ENCODER_BLOCKS = 2
_DECODER_BLOCKS = 3


class NormSwish(nn.GroupNorm):
    """GroupNorm over 32 groups, then swish."""

    def __init__(self, channels: int) -> None:
        super().__init__(_GROUPS, channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        # PyTorch's CUDA kernel copies channels-last tensors and gives a single image to 32 blocks only.
        if x.is_cuda and not torch.is_grad_enabled():
            return self.by_reductions(x)
        return silu(super().forward(x))

    def by_reductions(self, x: Tensor) -> Tensor:
        """The same, as general reductions and one affine step in float32: faster on a GPU for large maps."""
        wide = x.to(torch.float32, copy=True)  # changed in place below
        variance, mean = torch.var_mean(
            wide.unflatten(1, (_GROUPS, -1)), dim=(2, 3, 4), correction=0
        )  # [B, 32]
        mean, scale = (
            group.repeat_interleave(x.shape[1] // _GROUPS, 1)[..., None, None]
            for group in (mean, (variance + self.eps).rsqrt())
        )
        wide -= mean  # before scaling: a flat map has a large scale and must not cancel
        torch.addcmul(self.bias[:, None, None], wide, scale * self.weight[:, None, None], out=wide)
        return silu(wide, inplace=True).to(x.dtype)


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


class Upsample(nn.Module):
    """Nearest neighbour x2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, 2H, 2W]."""
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


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

    def forward(self, codes: Tensor) -> Tensor:
        """[B, z, h, w] to [B, 3, h * f, w * f]."""
        x = self.mid(self.conv_in(codes))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(self.norm_out(x))


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

    def decode(self, summed_codes: Tensor) -> Tensor:
        """[B, z, h, w] codes to [B, 3, H, W] float32 pixels, clamped to [-1, 1]."""
        return self.decoder(summed_codes.to(self.dtype)).float().clamp(-1, 1)


def to_uint8(pixels: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] to [B, H, W, 3] uint8, truncated as the official code does."""
    return ((pixels + 1) / 2 * 255).to(torch.uint8).permute(0, 2, 3, 1)
