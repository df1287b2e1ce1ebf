"""The kernel of `triton_kernel` with Hopper's own means, in Gluon: one warp loads, two groups of four compute.

The formulas are those of `triton_kernel`. What is different is who does what when, which plain Triton leaves to its
compiler and Gluon to us:

- One warp does nothing but start bulk tensor copies (TMA) into a ring of STAGES blocks of keys and values. It is
  always ahead of the arithmetic, also into the next tile.
- Two groups of four warps hold 64 queries each. They wait for blocks, not for each other, so that the
  exponentials of one run while the other uses the tensor cores.
- Within a group the next block's scores are started before this block's values are added, so that the tensor cores
  work through the exponentials too.
- Sums over a row are kept as a part for each of the four threads that share it, and added up once per tile.
- A program takes one tile after another (as many programs as multiprocessors), so that only the first tile waits
  for its first block.

Entropy costs the rows whose entropy is wanted alone. The others go through a loop without it.

A row's last block goes first, since it alone needs a mask. Its values behind the row's end are made zeros where they
lie, since 0 * NaN is NaN.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

GROUP = 64  # queries of a group of four warps
_GROUP = gl.constexpr(GROUP)
_LN_2 = gl.constexpr(0.6931471805599453)
# Triton renamed it between 3.6 and 3.9.
_start_copy = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared


@gluon.jit
def _tile(
    blocks,
    tile,
    num_queries,
    num_keys,
    blocks_per_row,
    num_blocks,
    BLOCK_M: gl.constexpr,
    RAGGED: gl.constexpr,
):
    """Head, row, first packed query, queries left of the row and number of keys of a tile."""
    head = tile // num_blocks
    block = tile - head * num_blocks
    if RAGGED:
        row = gl.load(blocks + block)
        query = gl.load(blocks + num_blocks + block)
        left = gl.load(blocks + 2 * num_blocks + block)
        num_keys = gl.load(blocks + 3 * num_blocks + block)
    else:
        row = block // blocks_per_row
        skipped = (block - row * blocks_per_row) * BLOCK_M
        query = row * num_queries + skipped
        left = num_queries - skipped
    return head, row, query, left, num_keys


@gluon.jit
def _load_blocks(
    q_desc, k_desc, v_desc, blocks, q_smem, k_smem, v_smem, q_ready, q_free, k_ready, k_free, v_ready, v_free,
    num_queries, num_keys, blocks_per_row, num_blocks, num_tiles, rows_per_key_row, rows_per_key_head,
    rows_per_value_row, rows_per_value_head,
    HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, RAGGED: gl.constexpr,
):  # fmt: skip
    """The loading warp: each tile's queries, then its keys and values from the last block to the first."""
    count = 0
    done = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        head, row, query, _left, seen = _tile(
            blocks, tile, num_queries, num_keys, blocks_per_row, num_blocks, 2 * _GROUP, RAGGED
        )
        for group in gl.static_range(2):
            mbarrier.wait(q_free.index(group), (done & 1) ^ 1)
            mbarrier.expect(q_ready.index(group), q_desc.block_type.nbytes)
            _start_copy(
                q_desc, [query + group * _GROUP, head * HEAD_DIM], q_ready.index(group), q_smem.index(group)
            )
        done += 1
        key_row = row * rows_per_key_row + head * rows_per_key_head
        value_row = row * rows_per_value_row + head * rows_per_value_head
        for back in range(gl.cdiv(seen, BLOCK_N)):
            start = (gl.cdiv(seen, BLOCK_N) - 1 - back) * BLOCK_N
            stage = count % STAGES
            phase = ((count // STAGES) & 1) ^ 1
            mbarrier.wait(k_free.index(stage), phase)
            mbarrier.expect(k_ready.index(stage), k_desc.block_type.nbytes)
            _start_copy(k_desc, [key_row + start, 0], k_ready.index(stage), k_smem.index(stage))
            mbarrier.wait(v_free.index(stage), phase)
            mbarrier.expect(v_ready.index(stage), v_desc.block_type.nbytes)
            _start_copy(v_desc, [value_row + start, 0], v_ready.index(stage), v_smem.index(stage))
            count += 1


@gluon.jit
def _pieces(x, BLOCK_N: gl.constexpr):
    """[64, BLOCK_N] of scores as eight of [64, 4, BLOCK_N / 32], where nothing moves.

    Axis 1 is the four threads that share a row: what is reduced over pieces and axis 2 stays in its thread.
    """
    a, b = gl.split(x.reshape([_GROUP, BLOCK_N // 32, 2, 2, 4, 2]).permute((0, 4, 1, 2, 3, 5)))
    halves = gl.split(a) + gl.split(b)
    return gl.split(halves[0]) + gl.split(halves[1]) + gl.split(halves[2]) + gl.split(halves[3])


@gluon.jit
def _max(pieces):
    """[64, 4]: each thread's greatest."""
    greatest = pieces[0]
    for index in gl.static_range(1, 8):
        greatest = gl.maximum(greatest, pieces[index])
    return gl.max(greatest, 2)


@gluon.jit
def _sum(pieces):
    """[64, 4]: each thread's sum."""
    total = pieces[0]
    for index in gl.static_range(1, 8):
        total = total + pieces[index]
    return gl.sum(total, 2)


@gluon.jit
def _dot(first, second):
    """[64, 4]: each thread's sum of products, one instruction each."""
    total = first[0] * second[0]
    for index in gl.static_range(1, 8):
        total = gl.fma(first[index], second[index], total)
    return gl.sum(total, 2)


@gluon.jit
def _add_blocks(
    q, q_free, k_smem, v_smem, k_ready, k_free, v_ready, v_free, count, seen, scale,
    HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, ENTROPY: gl.constexpr,
):  # fmt: skip
    """All blocks of a row's `seen` keys, the first of which is block `count` of this program.

    Returns:
        Of each query the weighted sum of the values [64, HEAD_DIM], the sum of the weights [64], and the moment [64].
    """
    dtype: gl.constexpr = k_smem.dtype
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, out_layout, 2)
    rows: gl.constexpr = gl.SliceLayout(1, score_layout)
    out_rows: gl.constexpr = gl.SliceLayout(1, out_layout)
    copy_layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    # The row's last block.
    remaining = seen - (gl.cdiv(seen, BLOCK_N) - 1) * BLOCK_N
    stage = count % STAGES
    phase = (count // STAGES) & 1
    mbarrier.wait(k_ready.index(stage), phase)
    zeros = gl.zeros([_GROUP, BLOCK_N], gl.float32, score_layout)
    scores = warpgroup_mma(q, k_smem.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)
    scores = warpgroup_mma_wait(0, deps=(scores,))
    mbarrier.arrive(k_free.index(stage), count=1)
    inside = (gl.arange(0, BLOCK_N, gl.SliceLayout(0, score_layout)) < remaining)[None, :]
    scores = gl.where(inside, scores, float("-inf"))
    # Of every row: the shift of its exponents, and each thread's part of the sums.
    shift = gl.max(_max(_pieces(scores, BLOCK_N)), 1) * scale
    exponents = scores * scale - gl.convert_layout(shift, rows)[:, None]
    p = gl.exp2(exponents)
    pieces = _pieces(p, BLOCK_N)
    weight = _sum(pieces)
    moment = gl.zeros_like(weight)
    if ENTROPY:
        moment = _dot(pieces, _pieces(gl.where(inside, exponents, 0.0), BLOCK_N))
    p = gl.convert_layout(p.to(dtype), p_layout)
    mbarrier.wait(v_ready.index(stage), phase)
    if remaining < BLOCK_N:
        v = v_smem.index(stage).load(copy_layout)
        real = (gl.arange(0, BLOCK_N, gl.SliceLayout(1, copy_layout)) < remaining)[:, None]
        v_smem.index(stage).store(gl.where(real, v, gl.zeros_like(v)))
        fence_async_shared()
    acc = gl.zeros([_GROUP, HEAD_DIM], gl.float32, out_layout)
    # Always one block of values behind its scores.
    steps = gl.cdiv(seen, BLOCK_N) - 1
    mbarrier.wait(k_ready.index((count + 1) % STAGES), ((count + 1) // STAGES) & 1, pred=steps > 0)
    for index in range(steps):
        value_stage = stage
        value_phase = phase
        stage = (count + index + 1) % STAGES
        phase = ((count + index + 1) // STAGES) & 1
        scores = warpgroup_mma(q, k_smem.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)
        mbarrier.wait(v_ready.index(value_stage), value_phase)
        acc = warpgroup_mma(p, v_smem.index(value_stage), acc, is_async=True)
        scores = warpgroup_mma_wait(1, deps=(scores,))
        mbarrier.arrive(k_free.index(stage), count=1)
        risen = gl.maximum(shift, gl.max(_max(_pieces(scores, BLOCK_N)), 1) * scale)
        exponents = scores * scale - gl.convert_layout(risen, rows)[:, None]
        weights = gl.exp2(exponents)
        step = shift - risen
        decay = gl.exp2(step)
        pieces = _pieces(weights, BLOCK_N)
        if ENTROPY:
            moment = decay[:, None] * (moment + step[:, None] * weight) + _dot(
                pieces, _pieces(exponents, BLOCK_N)
            )
        weight = decay[:, None] * weight + _sum(pieces)
        shift = risen
        # Waiting here for the next keys, too, keeps the assembler from moving the exponentials behind the
        # wait for the products that they must run beside: it moves nothing over the loop that a wait is.
        following = count + index + 2
        mbarrier.wait(k_ready.index(following % STAGES), (following // STAGES) & 1, pred=index + 1 < steps)
        acc, p = warpgroup_mma_wait(0, deps=(acc, p))
        mbarrier.arrive(v_free.index(value_stage), count=1)
        acc = acc * gl.convert_layout(decay, out_rows)[:, None]
        p = gl.convert_layout(weights.to(dtype), p_layout)
    mbarrier.arrive(q_free, count=1)
    mbarrier.wait(v_ready.index(stage), phase)
    acc = warpgroup_mma(p, v_smem.index(stage), acc, is_async=True)
    acc, p = warpgroup_mma_wait(0, deps=(acc, p))
    mbarrier.arrive(v_free.index(stage), count=1)
    return acc, gl.sum(weight, 1), gl.sum(moment, 1)


@gluon.jit
def _compute(
    out, entropy, blocks, q_smem, k_smem, v_smem, q_ready, q_free, k_ready, k_free, v_ready, v_free,
    num_queries, num_keys, blocks_per_row, num_blocks, num_tiles, num_tokens, watched_rows, scale, stride_ot,
    stride_oh, GROUP_INDEX: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr,
    RAGGED: gl.constexpr, ENTROPY: gl.constexpr,
):  # fmt: skip
    """A group of four warps: 64 queries of every tile of this program."""
    out_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD_DIM, 16])
    rows: gl.constexpr = gl.SliceLayout(1, gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16]))
    out_rows: gl.constexpr = gl.SliceLayout(1, out_layout)
    q = q_smem.index(GROUP_INDEX)
    free = q_free.index(GROUP_INDEX)
    count = 0
    done = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        head, row, query, left, seen = _tile(
            blocks, tile, num_queries, num_keys, blocks_per_row, num_blocks, 2 * _GROUP, RAGGED
        )
        mbarrier.wait(q_ready.index(GROUP_INDEX), done & 1)
        done += 1
        # Carried from one loop into another, the weights of 16 bits would be taken apart and put together in each step.
        # So each kind of row has a loop of its own, and their ends differ, lest the compiler joins them.
        if ENTROPY:
            if row < watched_rows:
                acc, total, moment = _add_blocks(
                    q, free, k_smem, v_smem, k_ready, k_free, v_ready, v_free, count, seen, scale,
                    HEAD_DIM, BLOCK_N, STAGES, True,
                )  # fmt: skip
                measured = gl.maximum(_LN_2 * (gl.log2(total) - moment / total), 0.0)
                measured = gl.convert_layout(measured, rows)
                m = GROUP_INDEX * _GROUP + gl.arange(0, _GROUP, rows)
                gl.store(entropy + head.to(gl.int64) * num_tokens + query + m, measured, mask=m < left)
            else:
                acc, total, _moment = _add_blocks(
                    q, free, k_smem, v_smem, k_ready, k_free, v_ready, v_free, count, seen, scale,
                    HEAD_DIM, BLOCK_N, STAGES, False,
                )  # fmt: skip
        else:
            acc, total, _moment = _add_blocks(
                q, free, k_smem, v_smem, k_ready, k_free, v_ready, v_free, count, seen, scale,
                HEAD_DIM, BLOCK_N, STAGES, False,
            )  # fmt: skip
        count += gl.cdiv(seen, BLOCK_N)
        # Out.
        acc = acc * gl.convert_layout(1.0 / total, out_rows)[:, None]
        m = GROUP_INDEX * _GROUP + gl.arange(0, _GROUP, out_rows)
        d = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, out_layout))
        at = out + query.to(gl.int64) * stride_ot + head * stride_oh
        gl.store(at + m[:, None] * stride_ot + d[None, :], acc.to(q_smem.dtype), mask=(m < left)[:, None])


@gluon.jit(
    do_not_specialize=[
        "num_queries", "num_keys", "blocks_per_row", "num_blocks", "num_tiles", "num_tokens", "watched_rows", "scale",
        "rows_per_key_row", "rows_per_key_head", "rows_per_value_row", "rows_per_value_head",
    ]
)  # fmt: skip
def hopper_attention_kernel(
    q_desc, k_desc, v_desc, out, entropy, blocks,
    num_queries, num_keys, blocks_per_row, num_blocks, num_tiles, num_tokens, watched_rows, scale,
    rows_per_key_row, rows_per_key_head, rows_per_value_row, rows_per_value_head, stride_ot, stride_oh,
    HEAD_DIM: gl.constexpr, BLOCK_N: gl.constexpr, STAGES: gl.constexpr, RAGGED: gl.constexpr,
    ENTROPY: gl.constexpr, COMPUTE_REGISTERS: gl.constexpr, LOAD_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Queries [T, H * D], keys and values as [rows of keys, D] through descriptors; see the module."""
    dtype: gl.constexpr = q_desc.dtype
    q_smem = gl.allocate_shared_memory(dtype, [2, _GROUP, HEAD_DIM], q_desc.layout)
    k_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HEAD_DIM], k_desc.layout)
    v_smem = gl.allocate_shared_memory(dtype, [STAGES, BLOCK_N, HEAD_DIM], v_desc.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_free = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(2):
        mbarrier.init(q_ready.index(index), count=1)
        mbarrier.init(q_free.index(index), count=1)
    for index in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(index), count=1)
        mbarrier.init(v_ready.index(index), count=1)
        mbarrier.init(k_free.index(index), count=2)  # both groups have read it
        mbarrier.init(v_free.index(index), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (
                _compute,
                (
                    out, entropy, blocks, q_smem, k_smem, v_smem, q_ready, q_free, k_ready, k_free, v_ready, v_free,
                    num_queries, num_keys, blocks_per_row, num_blocks, num_tiles, num_tokens, watched_rows, scale,
                    stride_ot, stride_oh, 0, HEAD_DIM, BLOCK_N, STAGES, RAGGED, ENTROPY,
                ),
            ),
            (
                _compute,
                (
                    out, entropy, blocks, q_smem, k_smem, v_smem, q_ready, q_free, k_ready, k_free, v_ready, v_free,
                    num_queries, num_keys, blocks_per_row, num_blocks, num_tiles, num_tokens, watched_rows, scale,
                    stride_ot, stride_oh, 1, HEAD_DIM, BLOCK_N, STAGES, RAGGED, ENTROPY,
                ),
            ),
            (
                _load_blocks,
                (
                    q_desc, k_desc, v_desc, blocks, q_smem, k_smem, v_smem, q_ready, q_free, k_ready, k_free,
                    v_ready, v_free, num_queries, num_keys, blocks_per_row, num_blocks, num_tiles,
                    rows_per_key_row, rows_per_key_head, rows_per_value_row, rows_per_value_head,
                    HEAD_DIM, BLOCK_N, STAGES, RAGGED,
                ),
            ),
        ],
        [4, 1],
        [COMPUTE_REGISTERS, LOAD_REGISTERS],
    )  # fmt: skip
