"""Temperature, guidance, noise and draw of bits in one pass over the logits, in Triton.

A program takes BLOCK_T packed tokens of one prompt. Everything is computed bit by bit as `naive.py` does it:

    guided = cfg (cond / temperature) + rest (uncond / temperature)    float32, each operation rounded
    noise  = Philox-4x32-10 of key seed, counter (bit // 4, token, scale, 0); word bit % 4
    bit    = noise < 1 / (1 + exp(zero - one))                         float64
    or, where |one - zero| >= certain_from,   bit = one > zero

The launch switches off the fusion of products and sums, which would round once where PyTorch rounds twice. Float64
makes the exponential's own rounding too small to matter; its few operations a bit take less time than the loads.
"""

import triton
import triton.language as tl

# Numbers differ from call to call and must not compile anew.
_NUMBERS = ["num_prompts", "num_tokens", "scale_index", "cfg", "rest", "temperature", "certain_from"]


@triton.jit
def _unit_interval(words):
    noise = ((words >> 8).to(tl.float32) + 0.5) * (2.0**-24)
    return tl.minimum(noise, 1 - 2.0**-24)


@triton.jit
def _noise(seed, token, scale_index, BLOCK_T: tl.constexpr, GROUPS: tl.constexpr):
    """[BLOCK_T, 4 * GROUPS] numbers in (0, 1)."""
    zeros = tl.zeros([BLOCK_T, GROUPS], tl.int32)
    group = zeros + tl.arange(0, GROUPS)[None, :]
    w0, w1, w2, w3 = tl.philox(seed, group, zeros + token[:, None], zeros + scale_index, zeros)
    # Interleaved twice, the words of a group lie side by side in their order.
    words = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return _unit_interval(words)


@triton.jit
def _guided(own, twin, inside, has_twin, cfg, rest, temperature, GUIDED: tl.constexpr):
    """Logits at the pointers `own`, divided and, where there is a twin, guided."""
    cond = tl.div_rn(tl.load(own, mask=inside, other=0.0), temperature)
    if GUIDED:
        uncond = tl.div_rn(tl.load(twin, mask=inside & has_twin, other=0.0), temperature)
        cond = tl.where(has_twin, cfg * cond + rest * uncond, cond)
    return cond


@triton.jit
def _is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit(do_not_specialize=_NUMBERS)
def draw_bits_kernel(
    logits, spans, token_indices, seeds, bits, finite, guided,
    num_prompts, num_tokens, scale_index, cfg, rest, temperature, certain_from,
    NUM_BITS: tl.constexpr, GROUPS: tl.constexpr, BLOCK_T: tl.constexpr, RAGGED: tl.constexpr,
    INDEXED: tl.constexpr, GUIDED: tl.constexpr, GREEDY: tl.constexpr, WITH_GUIDED: tl.constexpr,
):  # fmt: skip
    """Bits [P, L, bits] uint8, finite [P] uint8 (set to 0 where a logit is not) and guided logits [P, L, 2 * bits].

    Logits are [T, 2 * bits] float32. `spans` is [3, P] int64 where RAGGED is set: first token, tokens and first token
    of the unconditional twin (-1: none). Else each prompt has L tokens, and twins follow all prompts. `token_indices`
    is [T] int64 where INDEXED is set; else a row's tokens are the first of the map.
    """
    prompt = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    if RAGGED:
        first = tl.load(spans + prompt)
        count = tl.load(spans + num_prompts + prompt)
        twin_first = tl.load(spans + 2 * num_prompts + prompt)
    else:
        first = prompt * num_tokens
        count = num_tokens.to(tl.int64)
        twin_first = first + num_prompts * count
    present = place < count
    token = place
    if INDEXED:
        token = tl.load(token_indices + first + place, mask=present, other=0).to(tl.int32)
    bit = tl.arange(0, 4 * GROUPS)
    inside = present[:, None] & (bit < NUM_BITS)[None, :]
    own = logits + (first + place)[:, None] * (2 * NUM_BITS) + 2 * bit[None, :]
    twin = logits + (twin_first + place)[:, None] * (2 * NUM_BITS) + 2 * bit[None, :]
    has_twin = (twin_first + tl.zeros([BLOCK_T], tl.int64) >= 0)[:, None]
    zero = _guided(own, twin, inside, has_twin, cfg, rest, temperature, GUIDED)
    one = _guided(own + 1, twin + 1, inside, has_twin, cfg, rest, temperature, GUIDED)
    drawn = one > zero
    if not GREEDY:
        margin = one - zero
        noise = _noise(tl.load(seeds + prompt), token, scale_index, BLOCK_T, GROUPS)
        probability = 1.0 / (1.0 + tl.exp(-margin.to(tl.float64)))
        drawn = tl.where(tl.abs(margin) >= certain_from, drawn, noise.to(tl.float64) < probability)
    out = (prompt * num_tokens + token)[:, None] * NUM_BITS + bit[None, :]
    tl.store(bits + out, drawn.to(tl.uint8), mask=inside)
    if WITH_GUIDED:
        at = (prompt * num_tokens + token)[:, None] * (2 * NUM_BITS) + 2 * bit[None, :]
        tl.store(guided + at, zero, mask=inside)
        tl.store(guided + at + 1, one, mask=inside)
    # What is masked was loaded as 0. Every program that writes here writes the same.
    unfit = tl.where(_is_finite(zero) & _is_finite(one), 0, 1)
    if tl.max(tl.max(unfit, 1), 0) > 0:
        tl.store(finite + prompt, tl.zeros([], tl.uint8))
