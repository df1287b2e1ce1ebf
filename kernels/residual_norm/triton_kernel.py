"""Addition to the residual stream and the next layer norm in one pass over a row, in Triton.

With a row of x, its update u, gate g, scale a and shift b, all in float32:

    y = x + g u         normed = (y - mean) / sqrt(variance + eps) a + b

A program holds whole rows in registers, so the stream is read once and written once. The mean comes first, then the
variance from the centred row, so that a large mean does not cancel. The mean's own rounding is what remains: the centred
row's mean, which would be 0, is measured with the variance and taken off (the corrected two-pass algorithm of Chan, Golub
and LeVeque, 1983).

Multiply-adds are written out and the compiler may make no others. So what is rounded does not depend on the flags.
"""

import triton
import triton.language as tl


@triton.jit
def _rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter would cut off; a GPU rounds to even
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


# Numbers of tokens differ from call to call and must not compile anew.
@triton.jit(do_not_specialize=["num_tokens", "row_length"])
def residual_norm_kernel(
    x, update, gate, scale, shift, row_ids, added, normed,
    num_tokens, row_length, stride_gate, stride_scale, stride_shift,
    C: tl.constexpr, BLOCK_C: tl.constexpr, ROWS: tl.constexpr, EPS: tl.constexpr,
    ADD: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr, RAGGED: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """ROWS tokens of x [T, C]: `added` = x + gate * update (ADD), `normed` = LN of that * scale + shift (NORM).

    Gate, scale and shift are [R, C] with a stride per row, which is 0 where one row serves all. A token's row is
    `row_ids[token]` where RAGGED is set (-1: padding), else token // row_length. Without GATED the gate is 1. What a flag leaves out
    is any tensor.
    """
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK_C)
    real = token < num_tokens
    if RAGGED:
        row = tl.load(row_ids + token, mask=real, other=-1)
        real = row >= 0
    else:
        row = (token // row_length).to(tl.int64)
    used = (channel < C)[None, :]
    inside = real[:, None] & used
    at = token.to(tl.int64)[:, None] * C + channel[None, :]
    row = row[:, None]
    y = tl.load(x + at, mask=inside, other=0.0)
    if ADD:
        change = tl.load(update + at, mask=inside, other=0.0).to(tl.float32)
        if GATED:
            y = tl.fma(
                change, tl.load(gate + row * stride_gate + channel[None, :], mask=inside, other=0.0), y
            )
        else:
            y += change
        tl.store(added + at, y, mask=inside)
    if NORM:
        factor = tl.load(scale + row * stride_scale + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        offset = tl.load(shift + row * stride_shift + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(used, y - (tl.sum(y, 1) * (1.0 / C))[:, None], 0.0)
        error = tl.sum(centred, 1) * (1.0 / C)  # of the mean
        variance = tl.sum(centred * centred, 1) * (1.0 / C)
        variance = tl.maximum(tl.fma(-error, error, variance), 0.0)
        inverse = tl.rsqrt(variance + EPS)
        unit = (centred - error[:, None]) * inverse[:, None]
        result = tl.fma(unit, factor, offset)
        tl.store(normed + at, _rounded(result, normed.dtype.element_ty, INTERPRETED), mask=inside)
