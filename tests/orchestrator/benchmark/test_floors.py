"""The least time of a batch: its work over two ceilings."""

from itertools import pairwise

import pytest
import torch

from toprovar_batch.orchestrator.benchmark.floors import (
    Ceilings,
    ImageWork,
    WeightBytes,
    batch_floors,
    scale_flops,
    weight_bytes,
)
from toprovar_batch.worker.infinity.flops import decoder_flops, transformer_flops
from toprovar_batch.worker.infinity.transformer import Infinity
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import ArchitectureSpec, EngineSpec, ImageSpec, ModelSpec

SPEC = resolve(
    EngineSpec(
        model=ModelSpec(random_weights=True, architecture=ArchitectureSpec(depth=4, width=128, num_heads=2)),
        image=ImageSpec(resolution="0.06M"),
    )
)
SIZES = SPEC.model.transformer
SCHEDULE = SPEC.schedule_of(1.0)
TOKENS = [height * width for height, width in SCHEDULE]
DECODING = decoder_flops(SPEC.model.vae, SCHEDULE)
NO_WEIGHTS = WeightBytes(0, 0)


def _work(keep_ratio, counts=None, branches=None):
    """Of an image, with its true operations."""
    counts = counts or [[round(kept * n)] * SIZES.depth for kept, n in zip(keep_ratio, TOKENS, strict=True)]
    branches = branches or [2] * len(TOKENS)
    head = [row[0] * ran for row, ran in zip(counts, branches, strict=True)]
    return ImageWork(keep_ratio, transformer_flops(SIZES, counts, branches, head) + DECODING)


DENSE = _work([1.0] * len(TOKENS))


def test_the_scales_of_a_dense_image_are_exact():
    found = scale_flops(SPEC, SCHEDULE, DENSE)
    counts = [[n] * SIZES.depth for n in TOKENS]
    until = [
        transformer_flops(SIZES, counts[:end], [2] * end, [2 * n for n in TOKENS[:end]])
        for end in range(len(TOKENS) + 1)
    ]
    assert found == pytest.approx([after - before for before, after in pairwise(until)])


def test_a_pruned_image_keeps_its_sum_and_a_skipped_scale_takes_nothing():
    kept = [1.0] * 5 + [0.25, 0.0]
    counts = [[n] * 4 for n in TOKENS[:5]] + [[TOKENS[5], 0, 0, 0], [0] * 4]
    image = _work(kept, counts)
    found = scale_flops(SPEC, SCHEDULE, image)
    assert sum(found) == pytest.approx(image.flops - DECODING)
    assert found[-1] == 0
    floors = batch_floors(SPEC, [image], WeightBytes(4000, 1000), Ceilings(1e12, 1e12, 1e6))
    assert floors.scales[-1] == 0
    assert floors.scales[-2] == pytest.approx(2.0)  # one layer of four, and both ends: 2,000 bytes


def test_a_batch_takes_its_operations_and_reads_the_weights_once():
    floors = batch_floors(SPEC, [DENSE] * 3, NO_WEIGHTS, Ceilings(1e9, 1e9, 1.0))
    assert floors.transformer == pytest.approx(3e-6 * (DENSE.flops - DECODING))
    assert floors.decode == pytest.approx(3e-6 * DECODING)
    assert floors.transformer == sum(floors.scales)
    one, three = (
        batch_floors(SPEC, [DENSE] * count, WeightBytes(4000, 1000), Ceilings(1e18, 1e18, 1e6))
        for count in (1, 3)
    )
    assert one.scales == three.scales == pytest.approx([5.0] * len(TOKENS))


def test_weights_that_meet_the_text_alone_are_not_read_by_a_scale():
    with torch.device("meta"):
        found = weight_bytes(Infinity(SIZES).to(torch.bfloat16))
    width, mlp, bits = SIZES.width, SIZES.mlp_width, SIZES.bits_per_token
    products = width * (3 * width + width + width + width) + 2 * width * mlp
    assert products <= found.blocks / 2 / SIZES.depth <= products + 40 * width  # biases and norms
    assert found.ends == 2 * (width * bits + width + 2 * bits * width + 2 * bits)
