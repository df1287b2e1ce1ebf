"""Which requests run together, and how many of them a GPU holds: told without one."""

import pytest
import torch

from toprovar_batch.worker.batching import (
    LARGEST_AUTO_BATCH,
    choose_batch_size,
    common_h_div_w,
    cut_equally,
    image_bytes,
    plan_batches,
)
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.presets import get_preset
from toprovar_batch.worker.request import GenerationRequest

GIB = 2**30


def _requests(*ratios):
    return [GenerationRequest(f"s{row}", "x", None, row, ratio) for row, ratio in enumerate(ratios)]


def test_batches_hold_one_image_size_each():
    requests = _requests(*(1.0, 1.5, 1.04) * 3)
    batches = plan_batches(requests, 4)
    assert [[request.sample_id for request in batch] for batch in batches] == [
        ["s0", "s2", "s3"],
        ["s5", "s6", "s8"],
        ["s1", "s4", "s7"],
    ]
    assert [common_h_div_w(batch) for batch in batches] == [1.0, 1.0, 1.5]
    assert plan_batches([], 4) == []


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [
        (16, 15, [8, 8]),
        (64, 16, [16, 16, 16, 16]),
        (64, 15, [13, 13, 13, 13, 12]),
        (7, 3, [3, 2, 2]),
        (3, 8, [3]),
        (2, 1, [1, 1]),
        (0, 4, []),
    ],
)
def test_batches_of_one_size_are_as_few_and_as_equal_as_can_be(count, most, sizes):
    requests = _requests(*[1.0] * count)
    batches = cut_equally(requests, most)
    assert [len(batch) for batch in batches] == sizes
    assert [request for batch in batches for request in batch] == requests


def test_a_batch_of_several_image_sizes_is_refused_by_name():
    with pytest.raises(
        ValueError, match=r"h_div_w is 1 of sample s0 and 0\.5 of sample s2; plan_batches puts them apart"
    ):
        common_h_div_w(_requests(1.0, 1.01, 0.5))


def _bytes(preset, resolution="1M", **changes):
    settings = {"guided": True, "keeps_changes": False} | changes
    sizes = get_preset(preset).transformer
    return image_bytes(sizes, scale_schedule(1.0, resolution), torch.bfloat16, **settings)


def test_the_memory_of_an_image_is_its_cache_its_activations_and_what_the_policy_keeps():
    layers, width, rows, early, last = 32, 2048, 2, 6425, 4096  # of infinity-2b at 1024 x 1024
    cache = 2 * rows * (layers * early + last) * width * 2
    activations = rows * last * width * 2 * 25
    assert _bytes("infinity-2b") == cache + activations
    changes = layers * rows * 48 * 48 * width * 2
    assert _bytes("infinity-2b", keeps_changes=True) == cache + activations + changes
    assert 2 * _bytes("infinity-2b", guided=False) == cache + activations


@pytest.mark.parametrize(
    ("preset", "free_gib", "images"),
    [
        ("infinity-2b", 130, LARGEST_AUTO_BATCH),
        ("infinity-2b", 70, 14),
        ("infinity-2b", 18, 3),
        ("infinity-8b", 60, 6),
        ("infinity-8b", 1, 1),
    ],
)
def test_a_gpu_takes_as_many_images_as_its_free_memory_holds(preset, free_gib, images):
    per_image = _bytes(preset)
    assert choose_batch_size("cuda", None, free_gib * GIB, per_image) == images
    assert images in {1, LARGEST_AUTO_BATCH} or images * per_image <= 0.85 * free_gib * GIB


def test_what_is_requested_wins_on_a_gpu_and_a_cpu_takes_one_after_the_other():
    assert choose_batch_size("cuda", 40, GIB, GIB) == 40
    assert choose_batch_size("cpu", 40, None, GIB) == 1
    assert choose_batch_size("cpu", None, None, GIB) == 1
