"""Plans and the packed tokens they turn into."""

from dataclasses import replace

import pytest
import torch

from toprovar_batch.worker.pruning.history import BatchHistory, count_layers
from toprovar_batch.worker.pruning.packing import PackedScale
from toprovar_batch.worker.pruning.plan import ScalePlan, TokenSet, token_sets

CPU = torch.device("cpu")


def _plan(counts, keys, num_tokens=4, **changes):
    prompts = len(counts[0])
    layers = token_sets(counts, keys, num_tokens, CPU)
    return replace(ScalePlan.dense(num_tokens, len(counts), prompts), layers=layers, **changes)


def _state(packed, width=1):
    return torch.zeros(len(packed.rows) * packed.plan.num_tokens, width)


KEYS = torch.tensor([[[3.0, 1, 2, 0], [0, 1, 2, 3]], [[0, 1, 2, 3], [3, 2, 1, 0]]])  # [L, B, N]


def test_counts_of_everything_are_no_token_set():
    assert token_sets([[4, 4], [4, 4]], KEYS, 4, CPU) == (None, None)
    assert token_sets([[4, 4]], None, 4, CPU) == (None,)


def test_the_lowest_keys_of_each_layer_and_prompt_run():
    first, second = token_sets([[2, 1], [4, 3]], KEYS, 4, CPU)
    assert first.mask.int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 0]]
    assert second.mask.int().tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]


def test_layers_with_the_same_tokens_share_their_set():
    sets = token_sets([[4, 0], [4, 4], [4, 0]], None, 4, CPU)
    assert sets[0] is sets[2]
    assert sets[1] is None
    assert sets[0].mask.int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    shared = token_sets([[2, 1]] * 5, KEYS[:1], 4, CPU)
    assert len(set(shared)) == 1
    assert len(set(token_sets([[2, 1]] * 2, KEYS, 4, CPU))) == 2


def test_packed_tokens_are_in_the_order_of_the_rows():
    packed = PackedScale(_plan([[2, 1], [0, 4]], KEYS), num_rows=4, device=CPU)
    first = packed.layer_tokens(0, _state(packed))
    assert first.layout.row_lengths == (2, 1, 2, 1)
    assert first.layout.token_indices.tolist() == [1, 3, 0, 1, 3, 0]
    assert first.layout.row_ids.tolist() == [0, 0, 1, 2, 2, 3]
    assert first.positions.tolist() == [1, 3, 4, 9, 11, 12]
    second = packed.layer_tokens(1, _state(packed))
    assert second.layout.row_lengths == (0, 4, 0, 4)
    assert second.positions.tolist() == [4, 5, 6, 7, 12, 13, 14, 15]


def test_skipped_prompts_and_dropped_branches_are_no_rows():
    plan = _plan(
        [[2, 0, 1], [4, 0, 4]],
        KEYS[:, [0, 1, 1]],
        skipped=(False, True, False),
        conditional_only=(True, False, False),
    )
    packed = PackedScale(plan, num_rows=6, device=CPU)
    assert (packed.prompts, packed.unconditional, packed.rows) == ((0, 2), (2,), (0, 2, 5))
    first = packed.layer_tokens(0, _state(packed))
    assert first.layout.row_lengths == (2, 0, 1, 0, 0, 1)
    assert first.positions.tolist() == [1, 3, 4, 8]
    assert first.layout.row_ids.tolist() == [0, 0, 2, 5]
    second = packed.layer_tokens(1, _state(packed))
    assert second.positions is None
    assert second.layout.row_lengths == (4, 0, 4, 0, 0, 4)
    assert second.layout.token_indices.tolist() == [0, 1, 2, 3] * 3


def test_a_whole_layer_of_all_rows_is_the_dense_layout():
    packed = PackedScale(_plan([[4, 4], [1, 1]], KEYS), num_rows=4, device=CPU)
    assert packed.layer_tokens(0, _state(packed)).layout.token_indices is None
    assert packed.layer_tokens(0, _state(packed)).positions is None


@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        ({"conditional_only": (True, True, True)}, (0, 1, 2)),
        ({"conditional_only": (False, True, True)}, (0, 1, 2, 3)),
        ({"conditional_only": (True, True, True), "skipped": (False, False, True)}, (0, 1)),
    ],
)
def test_layouts_hold_the_rows_that_run_alone_where_they_are_the_first(changes, rows):
    counts = [[1, 1, 1], [4, 4, 4]]
    packed = PackedScale(_plan(counts, KEYS[:1, [0, 1, 1]], **changes), num_rows=6, device=CPU)
    assert packed.rows == rows
    whole = packed.layer_tokens(1, _state(packed))
    assert whole.positions is None
    assert whole.layout.token_indices is None
    assert whole.layout.row_lengths == (4,) * len(rows)
    some = packed.layer_tokens(0, _state(packed))
    assert some.layout.row_lengths == (1,) * len(rows)
    assert some.layout.uniform_length == 1
    assert some.layout.token_indices.tolist() == [3, 0, 0, 3][: len(rows)]
    assert some.positions.tolist() == [3, 4, 8, 15][: len(rows)]
    per_row = torch.arange(6)
    assert packed.of_rows(per_row).tolist() == list(rows)
    assert packed.of_rows(per_row).data_ptr() == per_row.data_ptr()


def test_a_layer_that_runs_nothing_is_left_out():
    packed = PackedScale(_plan([[0, 0], [1, 0]], KEYS), num_rows=2, device=CPU)
    assert packed.layer_tokens(0, _state(packed)) is None
    assert packed.layer_tokens(1, _state(packed)).layout.row_lengths == (1, 0)


def test_the_hidden_state_may_choose_the_tokens():
    chosen = TokenSet((2, 2, 2), score=lambda states: states[..., 0])
    plan = replace(
        ScalePlan.dense(3, 1, 3),
        layers=(chosen,),
        skipped=(True, False, False),
        conditional_only=(False, True, False),
    )
    packed = PackedScale(plan, num_rows=6, device=CPU)
    assert packed.rows == (1, 2, 5)
    x = torch.tensor([[5.0], [1], [7], [0], [2], [1], [9], [9], [0]])  # the last row must not matter
    tokens = packed.layer_tokens(0, x)
    assert tokens.layout.row_lengths == (0, 2, 2, 0, 0, 2)
    assert tokens.layout.token_indices.tolist() == [0, 2, 1, 2, 1, 2]
    assert tokens.positions.tolist() == [0, 2, 4, 5, 7, 8]


@pytest.mark.parametrize("seed", range(8))
def test_packing_agrees_with_a_loop_over_rows(seed):
    generator = torch.Generator().manual_seed(seed)
    layers, prompts, tokens = 5, 4, 7
    keys = torch.rand(layers, prompts, tokens, generator=generator)
    counts = torch.randint(0, tokens + 1, (layers, prompts), generator=generator)
    skipped = (torch.rand(prompts, generator=generator) < 0.3).tolist()
    skipped[seed % prompts] = False
    lonely = (torch.rand(prompts, generator=generator) < 0.3).tolist()
    plan = _plan(counts.tolist(), keys, tokens, skipped=tuple(skipped), conditional_only=tuple(lonely))
    packed = PackedScale(plan, num_rows=2 * prompts, device=CPU)
    rows = [p for p in range(prompts) if not skipped[p]]
    rows += [prompts + p for p in rows if not lonely[p]]
    assert list(packed.rows) == rows
    for layer in range(layers):
        expected = []
        for place, row in enumerate(rows):
            prompt = row % prompts
            kept = keys[layer, prompt].argsort()[: counts[layer, prompt]].sort().values
            expected += [(row, int(token), place * tokens + int(token)) for token in kept]
        found = packed.layer_tokens(layer, _state(packed))
        if not expected:
            assert found is None
            continue
        layout = found.layout
        positions = torch.arange(len(expected)) if found.positions is None else found.positions
        indices = (
            torch.arange(tokens).repeat(len(rows)) if layout.token_indices is None else layout.token_indices
        )
        triples = zip(layout.row_ids.tolist(), indices.tolist(), positions.tolist(), strict=True)
        assert list(triples) == expected


def test_layers_are_counted_for_each_token():
    packed = PackedScale(_plan([[2, 1], [4, 4], [0, 0]], KEYS[[0, 0, 0]]), num_rows=4, device=CPU)
    run = [packed.layer_tokens(layer, _state(packed)) for layer in range(3)]
    assert count_layers(packed, run).tolist() == [[1, 2, 1, 2], [2, 1, 1, 1]]


def test_work_of_a_prompt_counts_branches_and_skipped_scales():
    history = BatchHistory(((1, 1), (2, 2), (2, 2)), guided=True)
    history.add(ScalePlan.dense(1, 2, 2), torch.full((2, 1), 2))
    history.add(
        _plan([[2, 4], [4, 4]], KEYS, conditional_only=(True, False)), torch.tensor([[2, 1, 2, 1], [2] * 4])
    )
    history.add(
        _plan([[0, 4], [0, 4]], None, skipped=(True, False), conditional_only=(False, True)),
        torch.tensor([[300] * 4]),
    )
    first, second = history.work(0), history.work(1)
    assert first.keep_ratio == [1.0, 6 / 16, 0.0]
    assert first.token_layer_fraction == (4 + 6) / 36
    assert first.pruning_start_scale == 1
    # Without its unconditional branch half of the work is left, and no token out.
    assert (second.keep_ratio, second.pruning_start_scale) == ([1.0, 1.0, 0.5], 3)
    assert second.token_layer_fraction == (2 * 2 + 8 * 2 + 8) / 36
    maps = history.pruning_maps()
    assert maps[0].tolist() == [2, 2, 1, 2, 1, 0, 0, 0, 0]
    assert maps[1].tolist() == [2] * 5 + [255] * 4


@pytest.mark.parametrize(
    ("changes", "layer", "counts"),
    [
        ({"code_layers": 3}, 1, (1, 2)),
        ({"code_layers": 2}, None, (4, 4)),
        ({}, None, (4, 4)),
        ({"code_layers": 3, "observe_logits": True}, None, (4, 4)),
        ({"code_layers": 3, "skipped": (True, False)}, 1, (0, 2)),
        ({"code_layers": 2, "skipped": (True, False)}, None, (0, 4)),
    ],
)
def test_the_head_leaves_out_tokens_only_where_every_layer_must_have_run_them(changes, layer, counts):
    plan = _plan([[2, 3], [1, 2], [4, 4]], KEYS[[0, 0, 0]], **changes)
    assert plan.head_layer == layer
    assert plan.head_counts == counts


def test_the_head_takes_one_branch_where_logits_are_not_guided():
    history = BatchHistory(((1, 1), (2, 2), (2, 2)), guided=True)
    history.add(ScalePlan.dense(1, 2, 2), None)
    history.add(_plan([[2, 4], [4, 3]], KEYS, code_layers=2, conditional_only=(False, True)), None)
    history.add(_plan([[0, 4], [0, 4]], None, skipped=(True, False)), None)
    first, second = history.work(0), history.work(1)
    assert first.head_tokens((True, True, True)) == [2, 2 * 2, 0]
    assert first.head_tokens((True, False, False)) == [2, 2, 0]
    assert second.head_tokens((True, True, True)) == [2, 4, 8]
    assert second.head_tokens((False, False, False)) == [1, 4, 4]
