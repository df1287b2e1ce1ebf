"""The Hopper kernel's schedule, emulated: every wait, every buffer, against float64."""

import math
from pathlib import Path

import pytest
import torch

from toprovar_batch.kernels.layout import KeyLengths, TokenLayout, block_table

from .gluon_emulator import Descriptor, Emulator, Pointer
from .interleaving import Schedule

CPU = torch.device("cpu")
KERNEL = Path(__file__).parents[2] / "kernels" / "flash_attention" / "hopper_kernel.py"
HEADS, HEAD_DIM, BLOCK_M = 2, 64, 128
# The parts are two groups that compute, then the warp that loads.
LOADER_FIRST, LOADER_LAST, ONE_GROUP_BEHIND = (2, 0, 1), (1, 0, 2), (0, 2, 1)
SCHEDULES = [
    *(Schedule(seed) for seed in range(4)),
    *(Schedule(0, order, "late") for order in (None, LOADER_FIRST, LOADER_LAST, ONE_GROUP_BEHIND)),
    Schedule(0, LOADER_FIRST, "early"),
    Schedule(0, LOADER_LAST, "early"),
    Schedule(0, ONE_GROUP_BEHIND, "random"),
]


def _inputs(queries, keys):
    generator = torch.Generator().manual_seed(sum(queries) + sum(keys))
    q = torch.randn(sum(queries), HEADS, HEAD_DIM, generator=generator)
    cache = torch.full((2, len(keys), HEADS, max(keys) + 3, HEAD_DIM), math.nan)
    for row, seen in enumerate(keys):
        cache[:, row, :, :seen] = torch.randn(2, HEADS, seen, HEAD_DIM, generator=generator)
    return q, *cache[:, :, :, : max(keys)]


def _launch(q, k, v, queries, keys, *, stages, block_n, programs, schedule, watched_rows=2**20):
    """What `launch.flash_attention` hands to the kernel, on the emulator: output, entropy, the order of events."""
    ragged = len(set(queries)) > 1 or len(set(keys)) > 1
    out, entropy = torch.full_like(q, math.nan), torch.full((HEADS, len(q)), math.nan)
    per_row = -(-queries[0] // BLOCK_M)
    num_blocks = per_row * len(queries)
    blocks = torch.zeros(1, dtype=torch.int32)
    if ragged:
        blocks = torch.tensor(block_table(queries, keys, BLOCK_M))
        num_blocks = blocks.shape[1]
    flat = [(k.stride(0) * len(keys)) // HEAD_DIM - 3, HEAD_DIM]
    tiles = num_blocks * HEADS
    emulator = Emulator(schedule)
    emulator.launch(
        KERNEL, "hopper_attention_kernel", min(programs, tiles),
        Descriptor(q, [len(q), HEADS * HEAD_DIM], [q.stride(0), 1], [64, HEAD_DIM]),
        Descriptor(k, flat, [HEAD_DIM, 1], [block_n, HEAD_DIM]),
        Descriptor(v, flat, [HEAD_DIM, 1], [block_n, HEAD_DIM]),
        Pointer(out), Pointer(entropy), Pointer(blocks),
        queries[0], keys[0], per_row, num_blocks, tiles, len(q), watched_rows, HEAD_DIM**-0.5 * math.log2(math.e),
        *(stride // HEAD_DIM for stride in (*k.stride()[:2], *v.stride()[:2])), *out.stride()[:2],
        HEAD_DIM=HEAD_DIM, BLOCK_N=block_n, STAGES=stages, RAGGED=ragged, ENTROPY=watched_rows > 0,
        COMPUTE_REGISTERS=240, LOAD_REGISTERS=24,
    )  # fmt: skip
    return out, entropy, emulator.trace


def _exact(q, k, v, queries, keys):
    out, entropy = [], []
    layout, lengths = TokenLayout(queries, CPU), KeyLengths(keys, CPU)
    for row, part in enumerate(layout.row_slices):
        seen = lengths.lengths[row]
        scores = torch.einsum("lhd,hnd->hln", q[part].double(), k[row, :, :seen].double()) * HEAD_DIM**-0.5
        probability = scores.softmax(-1)
        out.append(torch.einsum("hln,hnd->lhd", probability, v[row, :, :seen].double()))
        entropy.append(torch.special.entr(probability).sum(-1))
    return torch.cat(out), torch.cat(entropy, 1)


@pytest.mark.parametrize(("stages", "block_n"), [(2, 32), (3, 32), (4, 64)])
@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ((1,), (1,)),
        ((130, 130), (96, 96)),
        ((63, 0, 200, 64), (111, 5, 33, 64)),
    ],
)
def test_answers_are_right_whoever_waits_for_whom(queries, keys, programs, stages, block_n):
    inputs = _inputs(queries, keys)
    exact, exact_entropy = _exact(*inputs, queries, keys)
    options = {"stages": stages, "block_n": block_n, "programs": programs}
    for schedule in SCHEDULES:
        out, entropy, _ = _launch(*inputs, queries, keys, **options, schedule=schedule)
        assert (out - exact).abs().max() < 2e-6, schedule
        assert (entropy - exact_entropy).abs().max() < 2e-6, schedule


def test_measuring_the_entropy_changes_no_bit_of_the_output():
    queries, keys = (70, 5), (100, 30)
    options = {"stages": 2, "block_n": 32, "programs": 2, "schedule": Schedule(0)}
    inputs = _inputs(queries, keys)
    out, _, _ = _launch(*inputs, queries, keys, **options)
    without, entropy, _ = _launch(*inputs, queries, keys, **options, watched_rows=0)
    assert torch.equal(out, without)
    assert entropy.isnan().all()


def test_only_rows_that_are_watched_are_measured():
    queries, keys = (63, 0, 200, 64), (111, 5, 97, 64)
    inputs = _inputs(queries, keys)
    for stages, programs, schedule in [(2, 1, Schedule(0)), (3, 3, Schedule(1)), (2, 2, SCHEDULES[7])]:
        options = {"stages": stages, "block_n": 32, "programs": programs, "schedule": schedule}
        out, entropy, _ = _launch(*inputs, queries, keys, **options)
        others_out, measured, _ = _launch(*inputs, queries, keys, **options, watched_rows=3)
        assert torch.equal(out, others_out)
        assert torch.equal(measured[:, :263], entropy[:, :263])
        assert measured[:, 263:].isnan().all()


def test_the_same_schedule_gives_the_same_order_of_events():
    queries, keys = (130, 20), (100, 170)
    inputs = _inputs(queries, keys)

    def trace(schedule):
        return tuple(_launch(*inputs, queries, keys, stages=2, block_n=32, programs=1, schedule=schedule)[2])

    first = [trace(schedule) for schedule in SCHEDULES]
    assert first == [trace(schedule) for schedule in SCHEDULES]
    assert len(set(first)) == len(SCHEDULES)


FAULTS = {
    "queries replaced while they are read": ("mbarrier.wait(q_free.index(group), (done & 1) ^ 1)", "pass"),
    "keys replaced while they are read": ("mbarrier.wait(k_free.index(stage), phase)", "pass"),
    "values read before they are there": (
        "mbarrier.wait(v_ready.index(value_stage), value_phase)",
        "pass",
    ),
    "values waited for after they are read": (
        """mbarrier.wait(v_ready.index(value_stage), value_phase)
        acc = warpgroup_mma(p, v_smem.index(value_stage), acc, is_async=True)""",
        """acc = warpgroup_mma(p, v_smem.index(value_stage), acc, is_async=True)
        mbarrier.wait(v_ready.index(value_stage), value_phase)""",
    ),
    "the loading warp waits for ever": (
        "mbarrier.arrive(v_free.index(value_stage), count=1)",
        "pass",
    ),
    "values freed while they are read": (
        """acc, p = warpgroup_mma_wait(0, deps=(acc, p))
        mbarrier.arrive(v_free.index(value_stage), count=1)""",
        """mbarrier.arrive(v_free.index(value_stage), count=1)
        acc, p = warpgroup_mma_wait(0, deps=(acc, p))""",
    ),
    "values freed by one group for both": (
        "mbarrier.init(v_free.index(index), count=2)",
        "mbarrier.init(v_free.index(index), count=1)",
    ),
    "a product used while it runs": ("warpgroup_mma_wait(1, deps", "warpgroup_mma_wait(2, deps"),
    "zeros that the tensor cores do not see": ("        fence_async_shared()", "        pass"),
    "0 * NaN": ("gl.where(real, v, gl.zeros_like(v))", "v"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_seen_in_every_schedule(fault, tmp_path, monkeypatch):
    line, instead = FAULTS[fault]
    source = KERNEL.read_text()
    assert source.count(line) == 1
    broken = tmp_path / "broken.py"
    broken.write_text(source.replace(line, instead))
    monkeypatch.setattr(f"{__name__}.KERNEL", broken)
    queries, keys = (130, 20), (100, 170)
    inputs = _inputs(queries, keys)
    missed = []
    for schedule in SCHEDULES:
        try:
            out, _, _ = _launch(*inputs, queries, keys, stages=2, block_n=32, programs=1, schedule=schedule)
        except AssertionError:
            continue
        if not out.isnan().any():
            missed.append(schedule)
    assert not missed
