"""Batches over tensors that stay in place."""

from pathlib import Path

import pytest

from toprovar_batch.worker.static_tables import padded_tokens


@pytest.mark.slow
def test_batches_in_place_pass_their_cases(run_cases):
    assert run_cases(Path(__file__).with_name("cuda_graphs_cases.py")) >= 4


def test_counts_are_padded_to_few_sizes_of_which_none_is_much_larger():
    most = 16 * 4096
    padded = [padded_tokens(count, most) for count in range(1, most + 1)]
    assert all(count <= size <= most for count, size in enumerate(padded, start=1))
    assert all(size <= 1.07 * count for count, size in enumerate(padded, start=1) if count >= 1024)
    assert len(set(padded)) < 130
    assert padded == sorted(padded)
