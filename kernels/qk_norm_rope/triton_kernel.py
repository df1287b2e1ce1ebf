"""One pass over packed q, k and v: unit length, head scale, rotation, and the write into a layer's cache, in Triton.

x is a head's D channels of a query or a key, f the head's scale (1 for keys), and t a place's turn:

    u = x f / max(|x|, 1e-12)        (u0, u1) -> (u0 cos t - u1 sin t, u0 sin t + u1 cos t)

for each pair of neighbours; a value is copied. All is computed in float32 and rounded once.

A program works on BLOCK_T tokens and GROUP heads, and loads the tokens' turns once for all of these heads. No sum
leaves its token and head. A tile's shape depends on the head size alone, so a token's bits do not depend on its batch.
"""

import triton
import triton.language as tl

# Lengths differ from call to call and must not compile anew.
_NUMBERS = ["num_tokens", "length", "start"]
_EPS = tl.constexpr(1e-12)


@triton.jit
def _rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    if INTERPRETED and dtype == tl.bfloat16:  # the interpreter would cut off; a GPU rounds to even
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _pairs(x):
    """[T, D] as two of [T, D / 2]: the first and the second of each pair of neighbours."""
    return tl.split(tl.reshape(x, [x.shape[0], x.shape[1] // 2, 2]))


@triton.jit
def _unit_turned(x, factor, cos, sin):
    """[T, D] to unit length times `factor`, turned; all float32."""
    first, second = _pairs(x)
    norm = tl.sqrt_rn(tl.sum(first * first + second * second, 1))
    scale = (factor / tl.maximum(norm, _EPS))[:, None]
    first *= scale
    second *= scale
    turned = tl.join(first * cos - second * sin, first * sin + second * cos)  # [T, D / 2, 2]
    return tl.reshape(turned, [x.shape[0], x.shape[1]])


@triton.jit(do_not_specialize=_NUMBERS)
def qk_norm_rope_append_kernel(
    qkv, q_scale, rotation, q, keys, values, row_ids, shifts, token_indices,
    num_tokens, length, start,
    stride_xt, stride_xp, stride_xh, stride_qt, stride_qh, stride_kr, stride_kh, stride_kn,
    stride_vr, stride_vh, stride_vn,
    HEAD_GROUPS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr, LISTED_ROWS: tl.constexpr, LISTED_PLACES: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """From qkv [T, 3, H, D], q_scale [H] float32 and rotation [N, D] (cos, sin, ...) to q [T, H, D] and the caches.

    keys and values are [R, H, S, D]. Without LISTED_ROWS, each row holds `length` tokens and its slots begin at `start`;
    with it, token t belongs to row `row_ids[t]` and goes to slot t + `shifts[row]`;
    a row of -1 is padding. A token's place in the token map is
    `token_indices[t]` with LISTED_PLACES, otherwise its place among those of its row.
    """
    # Neighbouring programs share tokens, so that their turns stay in the L2 cache.
    program = tl.program_id(0)
    block = program // HEAD_GROUPS
    head = ((program - block * HEAD_GROUPS) * GROUP).to(tl.int64)
    token = block * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    real = token < num_tokens
    if LISTED_ROWS:
        row = tl.load(row_ids + token, mask=real, other=-1)
        real = row >= 0
        slot = token + tl.load(shifts + row, mask=real, other=0)
    else:
        row = token // length
        slot = start + token - row * length
    place = tl.load(token_indices + token, mask=real, other=0) if LISTED_PLACES else token % length
    token = token.to(tl.int64)
    row = row.to(tl.int64)
    slot = slot.to(tl.int64)
    place = place.to(tl.int64)

    inside = real[:, None] & (d < HEAD_DIM)[None, :]
    turns = tl.load(rotation + (place * HEAD_DIM)[:, None] + d[None, :], mask=inside, other=0.0)
    cos, sin = _pairs(turns)
    x_at = qkv + (token * stride_xt)[:, None] + head * stride_xh + d[None, :]
    q_at = q + (token * stride_qt)[:, None] + head * stride_qh + d[None, :]
    k_at = keys + (row * stride_kr + slot * stride_kn)[:, None] + head * stride_kh + d[None, :]
    v_at = values + (row * stride_vr + slot * stride_vn)[:, None] + head * stride_vh + d[None, :]
    for _ in tl.static_range(GROUP):
        queries = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
        new_keys = tl.load(x_at + stride_xp, mask=inside, other=0.0).to(tl.float32)
        new_values = tl.load(x_at + 2 * stride_xp, mask=inside, other=0.0)
        queries = _unit_turned(queries, tl.load(q_scale + head), cos, sin)
        new_keys = _unit_turned(new_keys, 1.0, cos, sin)
        tl.store(q_at, _rounded(queries, q.dtype.element_ty, INTERPRETED), mask=inside)
        tl.store(k_at, _rounded(new_keys, keys.dtype.element_ty, INTERPRETED), mask=inside)
        tl.store(v_at, new_values, mask=inside)
        head += 1
        x_at += stride_xh
        q_at += stride_qh
        k_at += stride_kh
        v_at += stride_vh
