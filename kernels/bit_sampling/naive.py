"""Counter-based noise (Philox-4x32-10) and Bernoulli draws of bits, in plain PyTorch.

The noise of a bit is a pure function of (seed, scale, token, bit), so it does not change with the batch, the
order of the samples or the tokens that run. Philox: Salmon et al., "Parallel random numbers: as easy as
1, 2, 3", SC 2011; Triton's `tl.philox` is the same function.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


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
    device = seeds.device
    groups = torch.arange(-(-num_bits // 4), device=device)
    tokens = torch.arange(num_tokens, device=device)[:, None]
    scale = torch.full_like(groups, scale_index)
    key = (seeds[:, None, None] & _MASK, (seeds[:, None, None] >> 32) & _MASK)
    words = torch.stack(philox_4x32((groups, tokens, scale, torch.zeros_like(groups)), key), dim=-1)
    return unit_interval(words.flatten(-2)[..., :num_bits])


def sample_bits(logits: Tensor, seeds: Tensor, scale_index: int, *, top_p: float, greedy: bool) -> Tensor:
    """Draw each bit from the softmax over its pair of logits.

    A bit whose unlikely value has probability <= 1 - top_p is certain; `greedy` makes every bit certain.

    Args:
        logits: [B, L, 2 * bits] float32, guided and divided by the temperature; the second of each pair is
            the logit of bit = 1.
        seeds: [B] int64.
        scale_index: scale, counted from 0.
        top_p: in [0, 1]; 0 and 1 switch it off.
        greedy: take the likelier value, 0 on a tie.

    Returns:
        [B, L, bits] bool.
    """
    zero, one = logits.unflatten(-1, (-1, 2)).unbind(-1)
    if greedy:
        return one > zero
    probability = torch.sigmoid(one - zero)
    bits = uniform_noise(seeds, scale_index, logits.shape[1], zero.shape[-1]) < probability
    if 0 < top_p < 1:
        certain = torch.minimum(probability, 1 - probability) <= 1 - top_p
        bits = torch.where(certain, one > zero, bits)
    return bits
