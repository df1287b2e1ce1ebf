"""Softmax attention and its entropy in one pass over the keys (ToProVAR's Flash Attention Entropy), in Triton.

A program works on one tile: BLOCK_M queries of one row and one head, over all keys of that row, BLOCK_N at a time.
With raw scores s, c = softmax_scale * log2(e) and the running shift M = max(s) c, a block adds

    x = s c - M            exponents in base 2, none above 0 but for rounding
    p = 2^x                weight += sum p        acc += p v        moment += sum p x

and when M rises by d, the sums so far become weight 2^-d, acc 2^-d and 2^-d (moment - d weight). This is what they
would be had M been there from the start. In the end out = acc / weight and, in nats,

    entropy = ln 2 (log2 weight - moment / weight).

The textbook form m + log l - t / l with t = sum p s subtracts numbers as large as the scores, whose rounding grows
with them. Here moment is kept relative to the shift. Both terms of the entropy are sums of numbers of one sign, and
neither is larger than the entropy itself. Only the rounding of M is; it enters both alike and cancels. Scores may
be as large as 2^27 in magnitude; far beyond, that rounding alone takes p out of float16's range, then float32's.

No sum crosses tiles, so an answer depends on nothing but its own query and its row's keys. Other rows, their order and
the run do not matter.
"""

import triton
import triton.language as tl

# Below any exponent that 2^x tells from 0, and finite, so that 0 * it is 0 where the first block sets the shift.
_FARTHEST = tl.constexpr(-1024.0)
_LN_2 = tl.constexpr(0.6931471805599453)
# Lengths differ from call to call and must not compile anew.
_NUMBERS = ["num_queries", "num_keys", "blocks_per_row", "num_blocks", "num_tokens", "scale"]


@triton.jit
def _dot(a, b, acc, PRODUCTS: tl.constexpr):
    if PRODUCTS == "widened":  # as exact; Triton's interpreter would multiply bfloat16 by its bits
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    return tl.dot(a, b, acc, input_precision=PRODUCTS)


@triton.jit
def _rounded(x, dtype: tl.constexpr, PRODUCTS: tl.constexpr):
    if PRODUCTS == "widened" and dtype == tl.bfloat16:  # the interpreter would cut off; a GPU rounds to even
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def _add_block(
    q, k, v, inside, acc, shift, weight, moment, scale,
    MASKED: tl.constexpr, ENTROPY: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Add one block of keys: q [M, D], k [D, N], v [N, D], inside [N]."""
    scores = _dot(q, k, tl.zeros([q.shape[0], k.shape[1]], tl.float32), PRODUCTS)  # [M, N]
    if MASKED:
        scores = tl.where(inside[None, :], scores, float("-inf"))
    risen = tl.maximum(shift, tl.max(scores, 1) * scale)
    exponents = scores * scale - risen[:, None]
    p = tl.exp2(exponents)
    step = tl.maximum(shift - risen, _FARTHEST)
    decay = tl.exp2(step)
    if ENTROPY:
        terms = p * exponents
        if MASKED:  # 0 * -inf
            terms = tl.where(inside[None, :], terms, 0.0)
        moment = decay * (moment + step * weight) + tl.sum(terms, 1)
    weight = decay * weight + tl.sum(p, 1)
    acc = acc * decay[:, None]
    acc = _dot(_rounded(p, v.dtype, PRODUCTS), v, acc, PRODUCTS)
    return acc, risen, weight, moment


@triton.jit(do_not_specialize=_NUMBERS)
def attention_kernel(
    q, keys, values, key_rows, value_rows, out, entropy, blocks,
    num_queries, num_keys, blocks_per_row, num_blocks, num_tokens, scale,
    stride_qt, stride_qh, stride_kr, stride_kh, stride_kn, stride_vr, stride_vh, stride_vn, stride_ot, stride_oh,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    ENTROPY: tl.constexpr, RAGGED: tl.constexpr, DESCRIPTORS: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """One tile of q, out [T, H, D] over keys, values [R, H, N, D], and its entropy [H, T] float32.

    `key_rows` and `value_rows` describe the same keys and values as [rows, D] where DESCRIPTORS is set. `blocks` is
    the [4, B] table of `launch.block_table` where RAGGED is set; else each row has `num_queries` and `num_keys`.
    """
    # Neighbouring programs share a head and, mostly, a row, so that its keys stay in the L2 cache.
    head = tl.program_id(0) // num_blocks
    block = tl.program_id(0) - head * num_blocks
    if RAGGED:
        row = tl.load(blocks + block)
        query = tl.load(blocks + num_blocks + block)
        queries_left = tl.load(blocks + 2 * num_blocks + block)
        num_keys = tl.load(blocks + 3 * num_blocks + block)
    else:
        row = block // blocks_per_row
        skipped = (block - row * blocks_per_row) * BLOCK_M
        query = row * num_queries + skipped
        queries_left = num_queries - skipped
    row = row.to(tl.int64)
    head = head.to(tl.int64)
    query = query.to(tl.int64)
    keys += row * stride_kr + head * stride_kh
    values += row * stride_vr + head * stride_vh
    key_row = ((row * stride_kr + head * stride_kh) // stride_kn).to(tl.int32)
    value_row = ((row * stride_vr + head * stride_vh) // stride_vn).to(tl.int32)

    m = tl.arange(0, BLOCK_M)
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_D)
    real = (m < queries_left)[:, None] & (d < HEAD_DIM)[None, :]
    at = q + query * stride_qt + head * stride_qh
    q_tile = tl.load(at + m[:, None] * stride_qt + d[None, :], mask=real, other=0.0)
    key_at = n[None, :] * stride_kn + d[:, None]  # [D, N]
    value_at = n[:, None] * stride_vn + d[None, :]  # [N, D]
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    shift = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    moment = tl.zeros([BLOCK_M], tl.float32)
    for _ in range(num_keys // BLOCK_N):
        if DESCRIPTORS:
            k = key_rows.load([key_row, 0]).T
            v = value_rows.load([value_row, 0])
        elif HEAD_DIM == BLOCK_D:
            k = tl.load(keys + key_at)
            v = tl.load(values + value_at)
        else:
            k = tl.load(keys + key_at, mask=(d < HEAD_DIM)[:, None], other=0.0)
            v = tl.load(values + value_at, mask=(d < HEAD_DIM)[None, :], other=0.0)
        acc, shift, weight, moment = _add_block(
            q_tile, k, v, n, acc, shift, weight, moment, scale, False, ENTROPY, PRODUCTS
        )
        keys += BLOCK_N * stride_kn
        values += BLOCK_N * stride_vn
        key_row += BLOCK_N
        value_row += BLOCK_N
    remaining = num_keys % BLOCK_N
    if remaining > 0:  # what lies behind a row's keys is not read: 0 * NaN would be NaN
        inside = n < remaining
        k = tl.load(keys + key_at, mask=inside[None, :] & (d < HEAD_DIM)[:, None], other=0.0)
        v = tl.load(values + value_at, mask=inside[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        acc, shift, weight, moment = _add_block(
            q_tile, k, v, inside, acc, shift, weight, moment, scale, True, ENTROPY, PRODUCTS
        )
    acc = acc * (1.0 / weight)[:, None]
    at = out + query * stride_ot + head * stride_oh
    tl.store(
        at + m[:, None] * stride_ot + d[None, :], _rounded(acc, out.dtype.element_ty, PRODUCTS), mask=real
    )
    if ENTROPY:
        # Rounding may leave a hair below 0.
        measured = tl.maximum(_LN_2 * (tl.log2(weight) - moment / weight), 0.0)
        tl.store(entropy + head * num_tokens + query + m, measured, mask=m < queries_left)


@triton.jit(do_not_specialize=["num_tokens"])
def mean_over_heads_kernel(entropy, mean, num_tokens, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """[H, T] to [T], adding heads in their order: a sum in the order of arrival would differ from run to run.

    The loop is unrolled so that the heads' loads wait side by side.
    """
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for _ in tl.static_range(HEADS):
        total += tl.load(entropy + token, mask=token < num_tokens, other=0.0)
        entropy += num_tokens
    tl.store(mean + token, total / HEADS, mask=token < num_tokens)
