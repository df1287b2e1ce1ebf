"""Counter-based noise (Philox-4x32-10) and Bernoulli draws of bits, in plain PyTorch.

The noise of a bit is a pure function of (seed, scale, token, bit). So it does not change with the batch, the
order of the samples or the tokens that run. Philox: Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011; Triton's `tl.philox` is the same function.

Whether the noise is below a probability is decided in float64. Implementations of the exponential differ in the last
bits of float32, where the noise has its own steps. In float64 they differ 2^29 times less, so equal logits give equal bits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toprovar_batch.kernels.layout import TokenLayout

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class BitDraw:
    """How the bits of one scale are drawn.

    Attributes:
        scale_index: scale, counted from 0; part of the noise's counter.
        cfg_scale: guidance of rows with an unconditional twin, guided = cfg * cond + (1 - cfg) * uncond.
        temperature: divides the logits.
        top_p: in [0, 1]; a bit whose unlikely value has probability <= 1 - top_p is certain; 0 and 1: off.
        greedy: every bit takes its likelier value, 0 on a tie.
    """

    scale_index: int
    cfg_scale: float = 1.0
    temperature: float = 1.0
    top_p: float = 0.0
    greedy: bool = False


@dataclass(frozen=True)
class DrawnBits:
    """The bits of P prompts on token maps of L tokens.

    Attributes:
        bits: [P, L, bits] bool; False where a prompt has no logits for a token.
        finite: [P] bool, False where a prompt's guided logits hold one that is no finite number.
        guided: [P, L, 2 * bits] float32, guided and divided by the temperature, 0 where there are none; None unless
            asked for.
    """

    bits: Tensor
    finite: Tensor
    guided: Tensor | None = None


def _multiply_high_low(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a * b; int64 wraps, but both halves come out exact."""
    product = b * a
    return (product >> 32) & _MASK, product & _MASK


def philox_4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox-4x32.

    Args:
        counter: four int64 tensors that broadcast together, each value in [0, 2**32).
        key: two int64 tensors that broadcast with the counter, each value in [0, 2**32).

    Returns:
        Four int64 tensors of random 32-bit words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply_high_low(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply_high_low(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def unit_interval(words: Tensor) -> Tensor:
    """Random 32-bit words as float32 numbers in (0, 1): multiples of 2**-24 plus 2**-25, rounded, and never 1."""
    return (((words >> 8).float() + 0.5) * 2.0**-24).clamp_max(1 - 2.0**-24)


def uniform_noise(seeds: Tensor, scale_index: int, num_tokens: int, num_bits: int) -> Tensor:
    """Uniform numbers in (0, 1), one for each bit of each token.

    The counter is (bit // 4, token, scale, 0); its four output words serve four neighbouring bits.

    Args:
        seeds: [B] int64, each >= 0.
        scale_index: scale, counted from 0.
        num_tokens: tokens of the scale.
        num_bits: bits of a token.

    Returns:
        [B, num_tokens, num_bits] float32 on the device of `seeds`.
    """
    tokens = torch.arange(num_tokens, device=seeds.device)
    return noise_of_tokens(seeds[:, None], tokens, scale_index, num_bits)


def noise_of_tokens(seeds: Tensor, tokens: Tensor, scale_index: int, num_bits: int) -> Tensor:
    """`uniform_noise` of some tokens.

    Args:
        seeds: int64 that broadcasts with `tokens` to [...].
        tokens: int64, places in the scale's token map.
        scale_index: scale, counted from 0.
        num_bits: bits of a token.

    Returns:
        [..., num_bits] float32.
    """
    groups = torch.arange(-(-num_bits // 4), device=seeds.device)
    scale = torch.full_like(groups, scale_index)
    counter = (groups, tokens[..., None], scale, torch.zeros_like(groups))
    key = (seeds[..., None] & _MASK, (seeds[..., None] >> 32) & _MASK)
    words = torch.stack(philox_4x32(counter, key), dim=-1)
    return unit_interval(words.flatten(-2)[..., :num_bits])


def certain_margin(top_p: float) -> float:
    """The difference of a bit's logits from which its unlikely value has probability <= 1 - top_p.

    Args:
        top_p: in [0, 1]; 0 and 1 switch it off.

    Returns:
        log(top_p / (1 - top_p)), infinite where it is off, below 0 where every bit is certain.
    """
    return math.log(top_p / (1 - top_p)) if 0 < top_p < 1 else math.inf


def sample_bits(logits: Tensor, seeds: Tensor, scale_index: int, *, top_p: float, greedy: bool) -> Tensor:
    """Draw each bit from the softmax over its pair of logits.

    Args:
        logits: [B, L, 2 * bits] float32, guided and divided by the temperature; the second of each pair is
            the logit of bit = 1.
        seeds: [B] int64.
        scale_index: scale, counted from 0.
        top_p: as of `BitDraw`.
        greedy: as of `BitDraw`.

    Returns:
        [B, L, bits] bool.
    """
    tokens = torch.arange(logits.shape[1], device=logits.device)
    draw = BitDraw(scale_index, top_p=top_p, greedy=greedy)
    return _draw_tokens(logits, seeds[:, None], tokens, draw)


def _draw_tokens(logits: Tensor, seeds: Tensor, tokens: Tensor, draw: BitDraw) -> Tensor:
    """Bits [..., bits] of guided logits [..., 2 * bits]; seeds and tokens broadcast together to [...]."""
    zero, one = logits.unflatten(-1, (-1, 2)).unbind(-1)
    if draw.greedy:
        return one > zero
    margin = one - zero
    noise = noise_of_tokens(seeds, tokens, draw.scale_index, zero.shape[-1])
    bits = noise < torch.sigmoid(margin.double())
    certain_from = certain_margin(draw.top_p)
    if certain_from == math.inf:
        return bits
    return torch.where(margin.abs() >= certain_from, one > zero, bits)


def draw_bits(
    logits: Tensor,
    layout: TokenLayout,
    seeds: Tensor,
    num_tokens: int,
    draw: BitDraw,
    *,
    with_guided: bool = False,
) -> DrawnBits:
    """Divide logits by the temperature, guide them and draw their bits.

    Args:
        logits: [T, 2 * bits] float32 packed by `layout`; the second of each pair is the logit of bit = 1.
        layout: rows of P prompts' conditional branches, then, where there are 2P rows, of their unconditional ones.
            An unconditional row holds its conditional row's tokens, or none; then the conditional logits stay unguided.
        seeds: [P] int64, each >= 0.
        num_tokens: L, of the whole token map.
        draw: how.
        with_guided: also give the guided logits.

    Returns:
        The bits, and what was met. A prompt's do not depend on the other prompts.

    Raises:
        ValueError: rows that do not fit the prompts or the logits; says which.
    """
    check_rows(logits, layout, seeds, num_tokens)
    guided = _guide(logits / draw.temperature, layout, len(seeds), draw.cfg_scale)
    shape = (len(seeds), num_tokens)
    if len(guided) == len(seeds) * num_tokens and layout.token_indices is None:
        maps = guided.unflatten(0, shape)
        bits = sample_bits(maps, seeds, draw.scale_index, top_p=draw.top_p, greedy=draw.greedy)
        return DrawnBits(bits, maps.isfinite().all(-1).all(-1), maps if with_guided else None)
    prompt, token = layout.row_ids[: len(guided)], token_of(layout)[: len(guided)]
    bits = logits.new_zeros((*shape, guided.shape[-1] // 2), dtype=torch.bool)
    bits[prompt, token] = _draw_tokens(guided, seeds[prompt], token, draw)
    finite = torch.ones(shape, dtype=torch.bool, device=logits.device)
    finite[prompt, token] = guided.isfinite().all(-1)
    maps = None
    if with_guided:
        maps = guided.new_zeros((*shape, guided.shape[-1]))
        maps[prompt, token] = guided
    return DrawnBits(bits, finite.all(-1), maps)


def token_of(layout: TokenLayout) -> Tensor:
    """[T] int64: each packed token's place in its token map."""
    if layout.token_indices is not None:
        return layout.token_indices
    return torch.cat([torch.arange(length, device=layout.device) for length in layout.row_lengths])


def _guide(tempered: Tensor, layout: TokenLayout, prompts: int, cfg: float) -> Tensor:
    """Cfg * cond + (1 - cfg) * uncond of packed [T, ...] rows; gives those of the conditional rows."""
    own = sum(layout.row_lengths[:prompts])
    cond, uncond = tempered[:own], tempered[own:]
    if not len(uncond):
        return cond
    if len(uncond) == own:
        return cfg * cond + (1 - cfg) * uncond
    guided = []
    for prompt, twin in enumerate(layout.row_slices[prompts:]):
        row = tempered[layout.row_slices[prompt]]
        guided.append(cfg * row + (1 - cfg) * tempered[twin] if twin.stop > twin.start else row)
    return torch.cat(guided)


def check_rows(logits: Tensor, layout: TokenLayout, seeds: Tensor, num_tokens: int) -> None:
    """Check that logits, rows and seeds fit together.

    Raises:
        ValueError: they do not; says which.
    """
    prompts, lengths = len(seeds), layout.row_lengths
    if layout.num_rows not in {prompts, 2 * prompts} or len(logits) != layout.num_tokens:
        raise ValueError(
            f"{len(logits)} tokens' logits in {layout.num_rows} rows of {layout.num_tokens} tokens "
            f"do not fit {prompts} prompts"
        )
    if max(lengths, default=0) > num_tokens:
        raise ValueError(f"a row holds {max(lengths)} tokens of a map of {num_tokens}")
    for prompt, (own, twin) in enumerate(zip(lengths[:prompts], lengths[prompts:], strict=False)):
        if twin not in {0, own}:
            raise ValueError(
                f"prompt {prompt} has {own} conditional and {twin} unconditional tokens; the latter must be none or as many"
            )
