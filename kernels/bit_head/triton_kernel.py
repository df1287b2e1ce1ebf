"""Modulated LayerNorm and a thin product in one kernel, in Triton.

A program takes BLOCK_T tokens and BLOCK_N outputs, and reads its tokens three times, BLOCK_S or BLOCK_C channels at a time:

    m  = sum x / C                                    1. the mean, with the rounding of sums of values as large as x
    d  = x - m;   e = sum d / C;   v = sum d^2 / C - e^2    2. what that rounding left of the mean, and the variance
    y  = (d - e) / sqrt(v + eps) * (1 + scale) + shift      3. acc += y @ weight.T

Float32 cannot hold a mean of 300 closer than 2^-16, and an error of the mean moves every channel alike, which the product
adds up. Pass 2 therefore measures the rest e of differences, which are exact where x is near m. As e is 2^-16 of m or
so, v loses nothing to its square, unlike a variance from sums of x^2.

The order of every sum depends on C and the block sizes, which are constants. So a token's logits depend on its own state and
modulation alone, to the bit, whatever the number of tokens.
"""

import triton
import triton.language as tl

# Numbers differ from call to call and must not compile anew.
_NUMBERS = ["num_tokens", "row_length"]


@triton.jit
def _states(x, channel, present, WIDTH: tl.constexpr):
    """[BLOCK_T, BLOCK_C] float32 from pointers [BLOCK_T] at the first channel."""
    mask = present[:, None] & (channel < WIDTH)[None, :]
    return tl.load(x[:, None] + channel[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=_NUMBERS)
def bit_logits_kernel(
    x, modulation, weight, bias, row_ids, out, num_tokens, row_length, stride_x, stride_modulation, eps,
    WIDTH: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_S: tl.constexpr, RAGGED: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Logits [T, N] float32 of x [T, C], modulation [R, 2C], weight [N, C] and bias [N].

    `row_ids` is [T] int64 where RAGGED is set; else each row has `row_length` tokens.
    """
    token = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    present = token < num_tokens
    row = tl.load(row_ids + token, mask=present, other=0) if RAGGED else token // row_length
    x += token * stride_x
    total = tl.zeros([BLOCK_T, BLOCK_S], tl.float32)
    for start in range(0, WIDTH, BLOCK_S):
        total += _states(x, start + tl.arange(0, BLOCK_S), present, WIDTH)
    mean = tl.sum(total, 1) / WIDTH

    total = tl.zeros([BLOCK_T, BLOCK_S], tl.float32)
    squares = tl.zeros([BLOCK_T, BLOCK_S], tl.float32)
    for start in range(0, WIDTH, BLOCK_S):
        channel = start + tl.arange(0, BLOCK_S)
        apart = _states(x, channel, present, WIDTH) - mean[:, None]
        apart = tl.where((channel < WIDTH)[None, :], apart, 0.0)
        total += apart
        squares += apart * apart
    rest = tl.sum(total, 1) / WIDTH
    variance = tl.sum(squares, 1) / WIDTH - rest * rest
    factor = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))

    output = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    modulation += row * stride_modulation
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for start in range(0, WIDTH, BLOCK_C):
        channel = start + tl.arange(0, BLOCK_C)
        real = present[:, None] & (channel < WIDTH)[None, :]
        apart = (_states(x, channel, present, WIDTH) - mean[:, None]) - rest[:, None]
        scale = tl.load(modulation[:, None] + channel[None, :], mask=real, other=0.0)
        shift = tl.load(modulation[:, None] + WIDTH + channel[None, :], mask=real, other=0.0)
        normed = tl.where(real, apart * factor[:, None] * (1.0 + scale) + shift, 0.0)
        columns = tl.load(
            weight + output[None, :] * WIDTH + channel[:, None],
            mask=(output < OUTPUTS)[None, :] & (channel < WIDTH)[:, None],
            other=0.0,
        )  # [BLOCK_C, BLOCK_N]
        # A block's product is added to the sum of the others in float32 proper: tensor cores add more coarsely.
        acc += tl.dot(normed, columns, input_precision=PRODUCTS)
    acc += tl.load(bias + output, mask=output < OUTPUTS, other=0.0)[None, :]
    at = out + token[:, None] * OUTPUTS + output[None, :]
    tl.store(at, acc, mask=present[:, None] & (output < OUTPUTS)[None, :])
