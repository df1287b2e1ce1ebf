"""Which requests run together, and how many of them a GPU takes: told without one."""

import pytest

from toprovar_batch.worker.batching import (
    BUSY_TOKENS,
    USABLE,
    choose_batch_size,
    common_h_div_w,
    cut_equally,
    plan_batches,
)
from toprovar_batch.worker.request import GenerationRequest


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


GUIDED_1M = 2 * 10_521  # tokens of all scales


def test_a_batch_has_the_tokens_that_keep_a_gpu_busy():
    def batch_of(tokens):
        return choose_batch_size(tokens, lambda images: images, 10**6)

    assert batch_of(GUIDED_1M) == 8
    assert batch_of(GUIDED_1M // 2) == 16  # without guidance
    assert batch_of(2 * 2521) == 34  # 0.25M
    assert batch_of(2 * 521) == 162  # 0.06M
    assert batch_of(BUSY_TOKENS) == batch_of(2 * BUSY_TOKENS) == 1
    assert batch_of(BUSY_TOKENS - 1) == 2


def test_a_batch_is_never_larger_than_the_memory_holds():
    def batch_of(free):
        return choose_batch_size(GUIDED_1M, lambda images: 100 + 50 * images, free)

    sizes = [batch_of(free) for free in range(1, 600)]
    assert sizes == sorted(sizes)
    assert set(sizes) == set(range(1, 9))
    assert all(100 + 50 * size <= USABLE * free for free, size in enumerate(sizes, start=1) if size > 1)
    assert all(100 + 50 * (size + 1) > USABLE * free for free, size in enumerate(sizes, start=1) if size < 8)


def test_batches_may_be_as_large_as_their_own_size_allows():
    requests = _requests(*(1.0, 1.5) * 4)
    batches = plan_batches(requests, {1.0: 4, 1.5: 2}.__getitem__)
    assert [len(batch) for batch in batches] == [4, 2, 2]
