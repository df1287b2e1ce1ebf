"""Policies on hand-made maps: what they decide, and that they ask for no more than they need."""

import pytest
import torch

from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.infinity.schedule import RESOLUTIONS, scale_schedule
from toprovar_batch.worker.pruning.policies.base import BatchContext
from toprovar_batch.worker.pruning.policies.build import policy_factory
from toprovar_batch.worker.pruning.policies.fastvar import distance_to_mean
from toprovar_batch.worker.pruning.policies.fit import (
    decision_scale,
    late_scales,
    paper_2b_plan,
    representative_scale,
    scale_in_proportion,
)
from toprovar_batch.worker.pruning.policies.specs import (
    DenseSpec,
    DetailSpec,
    FastvarSpec,
    FixedExitSpec,
    ReplaySpec,
    SkipvarSpec,
    ToprovarSpec,
)
from toprovar_batch.worker.pruning.policies.token_ranking import rank_tokens
from toprovar_batch.worker.pruning.policies.toprovar import layer_counts, reaches_threshold

from .early_toprovar import early_toprovar

SCHEDULE = scale_schedule(1.0, "0.06M")  # 1, 2, 4, 6, 8, 12, 16 squared; the representative scale is 2
REPRESENTATIVE = 2


def _context(prompts, depth=3, schedule=SCHEDULE):
    return BatchContext(schedule, depth, torch.arange(prompts))


def _measured(policy, prompt):
    return policy.measured(prompt, ImageStatistics())


def _policy(spec, prompts=1, depth=3, schedule=SCHEDULE):
    return policy_factory(spec, len(schedule), depth)(_context(prompts, depth, schedule))


def _map(size, low, *, flat=False):
    """A map whose first `low` of all tokens have entropy 1, the others 3; or one that is equal everywhere."""
    tokens = size[0] * size[1]
    entropy = torch.full((tokens,), 3.0)
    if not flat:
        entropy[: round(low * tokens)] = 1.0
    return entropy


def _detail(size):
    """A map of full rank whose singular values are close: R near 1."""
    return torch.eye(*size).flatten() + 0.01


def _drive(policy, maps_of, *, prompts, depth=3, schedule=SCHEDULE):
    """Run all scales; `maps_of(scale, layer, prompt)` gives the entropy. Returns the plans."""
    plans = []
    for scale in range(len(schedule)):
        plan = policy.plan(scale)
        plans.append(plan)
        for layer in range(depth if plan.entropy_of else 0):
            maps = torch.stack([maps_of(scale, layer, prompt) for prompt in plan.entropy_of])
            policy.observe(scale, layer, maps)
    return plans


def _fractions(plan, prompt=0):
    return [plan.counts(layer)[prompt] / plan.num_tokens for layer in range(len(plan.layers))]


def _by_low_fraction(lows):
    """Maps whose low-entropy ratio is lows[prompt][scale]."""
    return lambda scale, _layer, prompt: _map(SCHEDULE[scale], lows[prompt][scale])


@pytest.mark.parametrize(
    ("num_scales", "scale"), [(13, 8), (12, 7), (10, 6), (7, 4)], ids=list(reversed(RESOLUTIONS))
)
def test_the_representative_scale_is_8_of_13_in_proportion(num_scales, scale):
    assert representative_scale(ToprovarSpec(), num_scales) == scale
    assert representative_scale(ToprovarSpec(representative_scale=1), num_scales) == 1


def test_defaults_in_proportion_are_these_at_every_resolution():
    found = {
        resolution: (
            representative_scale(ToprovarSpec(), scales),
            decision_scale(SkipvarSpec(), scales),
            *late_scales(DetailSpec(), scales),
        )
        for resolution, scales in RESOLUTIONS.items()
    }
    assert found == {"0.06M": (4, 3, 5, 4), "0.25M": (6, 4, 7, 6), "0.60M": (7, 6, 8, 7), "1M": (8, 6, 9, 8)}


def test_a_scale_in_proportion_keeps_first_last_and_order():
    for num_scales in range(1, 14):
        scales = [scale_in_proportion(scale, num_scales) for scale in range(13)]
        assert scales[0] == 0
        assert scales[-1] == num_scales - 1
        assert scales == sorted(scales)
    assert [scale_in_proportion(scale, 13) for scale in range(13)] == list(range(13))


def test_both_directions_of_the_threshold_include_it_and_nan_reaches_neither():
    at_least, at_most = (
        early_toprovar(depth_threshold=0.5, threshold_direction=way) for way in ("at_least", "at_most")
    )
    assert [reaches_threshold(at_least, ratio) for ratio in (0.49, 0.5, 0.51)] == [False, True, True]
    assert [reaches_threshold(at_most, ratio) for ratio in (0.49, 0.5, 0.51)] == [True, True, False]
    assert not reaches_threshold(at_least, float("nan"))
    assert not reaches_threshold(at_most, float("nan"))


SCALE_ONLY = {"layer_pruning": False, "token_pruning": False}
LOWS = [[0.9, 0.9, 0.25, 0.25, 0.5, 0.25, 0.25], [0.9, 0.9, 0.5, 0.1, 0.1, 0.1, 0.1], [0.9] * 2 + [0.25] * 5]


def test_scale_pruning_alone_skips_every_scale_after_each_prompts_depth():
    policy = _policy(early_toprovar(depth_threshold=0.5, **SCALE_ONLY), prompts=3)
    plans = _drive(policy, _by_low_fraction(LOWS), prompts=3)
    assert [plan.skipped for plan in plans] == [(False,) * 3] * 3 + [(False, True, False)] * 2 + [
        (True, True, False)
    ] * 2
    assert all(layer is None for plan in plans[:3] for layer in plan.layers)


def test_the_paper_counts_the_depth_from_the_scale_after_the_one_that_tells():
    policy = _policy(
        early_toprovar(depth_threshold=0.25, threshold_direction="at_most", **SCALE_ONLY), prompts=3
    )
    plans = _drive(policy, _by_low_fraction(LOWS), prompts=3)
    assert [[plan.skipped[p] for plan in plans].index(True) for p in range(3)] == [3, 4, 3]


def test_entropy_is_asked_for_only_where_a_later_decision_needs_it():
    policy = _policy(early_toprovar(depth_threshold=0.5, **SCALE_ONLY), prompts=3)
    plans = _drive(policy, _by_low_fraction(LOWS), prompts=3)
    assert [plan.entropy_of for plan in plans] == [(), (), (0, 1, 2), (0, 2), (0, 2), (2,), ()]
    whole = _drive(
        _policy(early_toprovar(scale_pruning=False)), lambda s, *_: _detail(SCHEDULE[s]), prompts=1
    )
    assert [bool(plan.entropy_of) for plan in whole] == [s == REPRESENTATIVE for s in range(7)]
    by_bits = early_toprovar(scale_pruning=False, layer_pruning=False, saliency="bit_uncertainty")
    assert not _policy(by_bits).plan(REPRESENTATIVE).entropy_of
    assert _policy(by_bits).plan(REPRESENTATIVE).observe_logits


def test_low_entropy_ratios_are_reported_where_they_were_measured():
    policy = _policy(early_toprovar(depth_threshold=0.5, **SCALE_ONLY), prompts=3)
    _drive(policy, _by_low_fraction(LOWS), prompts=3)
    assert _measured(policy, 0).low_entropy_ratio == (None, None, 0.25, 0.25, 0.5, None, None)
    assert _measured(policy, 1).low_entropy_ratio == (None, None, 0.5, None, None, None, None)
    assert _measured(policy, 0).layer_representation_score == ()


def _two_kinds(scale, layer, _prompt):
    """Layers 0 and 2 are Detail, layer 1 is Global."""
    return _map(SCHEDULE[scale], 0.75, flat=True) if layer == 1 else _detail(SCHEDULE[scale])


@pytest.mark.parametrize(
    ("switches", "late"),
    [
        ({"token_pruning": False}, [0, 1, 0]),
        ({"token_pruning": False, "layer_pruning": False}, [0, 0, 0]),
        ({"token_pruning": False, "scale_pruning": False}, [0, 1, 0]),
        ({"layer_pruning": False}, [0.5, 0.5, 0.5]),
        ({"layer_pruning": False, "scale_pruning": False}, [0.5, 0.5, 0.5]),
        ({}, [0.5, 1, 0.5]),
        ({"scale_pruning": False}, [0.5, 1, 0.5]),
    ],
)
def test_each_switch_prunes_what_it_says(switches, late):
    spec = early_toprovar(depth_threshold=0.5, a_min=0.5, a_max=0.5, beta=0.1, **switches)
    plans = _drive(_policy(spec), _two_kinds, prompts=1)
    for scale, plan in enumerate(plans):
        expected = late if scale > REPRESENTATIVE else [1, 1, 1]
        assert _fractions(plan) == expected
        assert plan.skipped == (not any(expected),)


def test_without_the_threshold_reached_nothing_is_pruned():
    for direction, threshold in (("at_least", 1.0), ("at_most", 0.0)):
        settings = {"depth_threshold": threshold, "threshold_direction": direction, "a_min": 0.5}
        spec = early_toprovar(**settings, layer_pruning=False)
        for plan in _drive(_policy(spec), _by_low_fraction([[0.5] * 7]), prompts=1):
            assert _fractions(plan) == [1, 1, 1]


def test_rho_is_that_of_the_mean_over_the_layers():
    def maps_of(scale, layer, _prompt):
        tokens = SCHEDULE[scale][0] ** 2
        entropy = torch.full((tokens,), 3.0)
        entropy[: tokens // 4 if layer == 1 else tokens * 3 // 4] = -60.0 if layer == 1 else 1.0
        return entropy  # the mean is low where layer 1 is, in a quarter

    policy = _policy(early_toprovar(depth_threshold=0.5, **SCALE_ONLY))
    assert not any(any(plan.skipped) for plan in _drive(policy, maps_of, prompts=1))
    assert _measured(policy, 0).low_entropy_ratio[REPRESENTATIVE:-1] == (0.25,) * 4


def test_the_tokens_of_lowest_entropy_stay():
    spec = early_toprovar(scale_pruning=False, layer_pruning=False, a_min=0.75, a_max=0.75)
    policy = _policy(spec)
    size = SCHEDULE[REPRESENTATIVE]
    plans = _drive(policy, lambda *_: torch.arange(16.0).flip(0), prompts=1)
    mask = plans[REPRESENTATIVE + 1].layers[0].mask[0].view(6, 6)
    assert size == (4, 4)
    assert mask.sum() == 9
    assert mask.flatten().nonzero().flatten().tolist() == list(range(27, 36))


def test_more_is_dropped_in_later_scales_and_layers_of_higher_score():
    scores = torch.tensor([[1.0], [0.5]])
    maps = torch.full((2, 1, 100), 2.0)
    spec = early_toprovar(a_min=0.1, a_max=0.9)
    counts = [
        rank_tokens(spec, maps, scores, scale, 10, torch.tensor([0])).counts[:, 0].tolist()
        for scale in (4, 9)
    ]
    assert counts == [[50, 70], [10, 50]]  # 1 - (0.1 + 0.8 q), q = 0.5, 0.25; 1, 0.5


def test_a_draw_keeps_salient_tokens_more_often_and_depends_on_the_seed_alone():
    spec = early_toprovar(a_min=0.0, a_max=0.8, selection="draw", keep_ratio_floor=0.0)
    maps = torch.cat((torch.full((1, 200, 50), 0.5), torch.full((1, 200, 50), 1.5)), dim=-1)
    seeds = torch.arange(200)
    ranking = rank_tokens(spec, maps, torch.ones(1, 200), 9, 10, seeds)
    kept = ranking.keys < 0
    assert torch.equal(kept.sum(-1), ranking.counts)
    assert kept[..., :50].float().mean().item() == pytest.approx(0.6, abs=0.02)
    assert not kept[..., 50:].any()  # 1 - 0.8 * 1.5 is below 0
    alone = rank_tokens(spec, maps[:, 7:8], torch.ones(1, 1), 9, 10, seeds[7:8])
    assert torch.equal(alone.keys[:, 0], ranking.keys[:, 7])


def test_no_fewer_than_the_floor_are_kept():
    for selection in ("top_count", "draw"):
        spec = early_toprovar(a_min=1.0, a_max=1.0, keep_ratio_floor=0.125, selection=selection)
        counts = rank_tokens(spec, torch.rand(2, 3, 100), torch.ones(2, 3), 5, 7, torch.arange(3)).counts
        assert counts.tolist() == [[13] * 3] * 2


@pytest.mark.parametrize("value", [0.0, 2.5, float("nan"), float("inf")])
@pytest.mark.parametrize("selection", ["top_count", "draw"])
def test_maps_that_say_nothing_prune_nothing_by_layers_and_never_give_nan(value, selection):
    maps_of = lambda scale, *_: torch.full((SCHEDULE[scale][0] ** 2,), value)  # noqa: E731
    policy = _policy(early_toprovar(selection=selection))
    plans = _drive(policy, maps_of, prompts=1)
    assert all(_fractions(plan) == [1, 1, 1] for plan in plans)
    assert _measured(policy, 0).layer_representation_score == (0.0,) * 3
    assert _measured(policy, 0).low_entropy_ratio == (None,) * 7
    for direction in ("at_least", "at_most"):
        only = early_toprovar(layer_pruning=False, selection=selection, threshold_direction=direction)
        assert all(_fractions(plan) == [1, 1, 1] for plan in _drive(_policy(only), maps_of, prompts=1))
    # Pruned all the same, where only the token rule is asked.
    spec = early_toprovar(scale_pruning=False, layer_pruning=False, selection=selection)
    for plan in _drive(_policy(spec), maps_of, prompts=1):
        assert all(0 < fraction <= 1 for fraction in _fractions(plan))


def test_differences_below_rounding_noise_decide_nothing():
    noisy = lambda scale, *_: 3 + 1e-5 * torch.rand(SCHEDULE[scale][0] ** 2)  # noqa: E731
    policy = _policy(early_toprovar(depth_threshold=0.1, layer_pruning=False))
    assert all(_fractions(plan) == [1, 1, 1] for plan in _drive(policy, noisy, prompts=1))
    assert _measured(policy, 0).low_entropy_ratio == (None,) * 7


def test_a_pruned_prompt_keeps_its_maps_while_another_one_goes_on():
    def maps_of(scale, _layer, prompt):
        size = SCHEDULE[scale]
        low = (LOWS[0], LOWS[1])[prompt][scale]
        return _map(size, low) if prompt == 0 else _map(size, low).flip(0)

    spec = early_toprovar(depth_threshold=0.5, layer_pruning=False, a_min=0.75, a_max=0.75)
    together = _drive(_policy(spec, prompts=2), maps_of, prompts=2)
    for prompt in range(2):
        alone = _drive(
            _policy(spec), lambda scale, layer, _, prompt=prompt: maps_of(scale, layer, prompt), prompts=1
        )
        for both, single in zip(together, alone, strict=True):
            for layer in range(3):
                assert both.counts(layer)[prompt] == single.counts(layer)[0]
                if single.layers[layer] is not None:
                    assert torch.equal(both.layers[layer].mask[prompt], single.layers[layer].mask[0])


def test_changes_are_kept_only_of_prompts_that_may_need_them():
    plans = _drive(
        _policy(early_toprovar(depth_threshold=0.5, layer_pruning=False), 3),
        _by_low_fraction(LOWS),
        prompts=3,
    )
    assert [plan.changes_of for plan in plans] == [(), (), (0, 1, 2), (0, 2), (0, 2), (2,), ()]
    identity = early_toprovar(restoration="identity")
    assert not any(
        plan.changes_of or plan.restore
        for plan in _drive(_policy(identity), _by_low_fraction(LOWS), prompts=1)
    )


def test_global_layers_run_whole_detail_layers_their_tokens():
    spec = early_toprovar(layer_threshold=0.5)
    assert layer_counts(spec, [0.1, 0.5, 0.9], [3, 4, 5], 10) == [10, 4, 5]
    literal = early_toprovar(layer_threshold=0.0)
    assert layer_counts(literal, [0.0, 0.5, 0.9], [3, 4, 5], 10) == [3, 4, 5]


@pytest.mark.parametrize(("saliency", "salient"), [("bit_uncertainty", 5), ("code_detail", 5)])
def test_other_saliencies_keep_the_tokens_that_they_mean(saliency, salient):
    spec = early_toprovar(scale_pruning=False, layer_pruning=False, saliency=saliency, a_min=0.99, a_max=0.99)
    policy = _policy(spec, depth=2)
    for scale in range(REPRESENTATIVE + 1):
        plan = policy.plan(scale)
        assert not plan.entropy_of
        if plan.observe_logits:
            logits = torch.zeros(1, 16, 4)
            logits[..., 1::2] = 9.0  # every bit is sure,
            logits[:, salient] = 0.0  # but one token's
            policy.observe_scale(scale, logits, None, (0,))
        if plan.observe_codes:
            codes = torch.zeros(1, 4, 4, 4)
            codes[..., salient // 4, salient % 4] = 1.0
            policy.observe_scale(scale, None, codes, (0,))
    sets = policy.plan(REPRESENTATIVE + 1).layers
    assert sets[0] is sets[1]
    row, column = divmod(int(sets[0].mask[0].nonzero()[0]), 6)
    assert (row, column) in {(1, 1), (1, 2), (2, 1), (2, 2)}  # of 6 x 6, where token (1, 1) of 4 x 4 is


def test_dense_runs_everything():
    for scale, plan in enumerate(_drive(_policy(DenseSpec()), None, prompts=1)):
        assert _fractions(plan) == [1, 1, 1]
        assert plan.num_tokens == SCHEDULE[scale][0] ** 2


@pytest.mark.parametrize(("start", "first"), [(None, 4), (1, 1), (6, 6)])
def test_fixed_exit_skips_every_scale_from_its_start(start, first):
    plans = _drive(_policy(FixedExitSpec(start_scale=start), 2), None, prompts=2)
    assert [all(plan.skipped) for plan in plans] == [scale >= first for scale in range(7)]


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_fastvar_finds_its_scales_from_the_last_one(resolution):
    schedule = scale_schedule(1.0, resolution)
    plans = _drive(_policy(FastvarSpec(), depth=32, schedule=schedule), None, prompts=1, schedule=schedule)
    late = [(_fractions(plan)[10], plan.skipped[0], bool(plan.changes_of)) for plan in plans[-5:]]
    half = [
        round(ratio * plans[at].num_tokens) / plans[at].num_tokens for ratio, at in ((0.6, -4), (0.5, -3))
    ]
    assert late == [
        (1.0, False, True),
        (half[0], False, False),
        (half[1], False, False),
        (0.0, True, False),
        (0.0, True, False),
    ]
    if resolution == "1M":
        assert list(schedule[-5:]) == [(24, 24), (32, 32), (40, 40), (48, 48), (64, 64)]


@pytest.mark.parametrize(("depth", "first", "last"), [(32, 3, 27), (40, 4, 34), (9, 1, 8), (3, 0, 2)])
def test_fastvar_prunes_layers_in_proportion(depth, first, last):
    scaled = _policy(FastvarSpec(), depth=depth).plan(3)
    pruned = [layer for layer, tokens in enumerate(scaled.layers) if tokens is not None]
    assert (pruned[0], pruned[-1], len(pruned)) == (first, last, last - first + 1)


def test_fastvar_keeps_the_tokens_farthest_from_the_mean():
    states = torch.tensor([[[0.0, 0], [0, 0], [0, 0], [4, 0]], [[1, 0], [0, 1], [-1, 0], [0, -3]]])
    assert distance_to_mean(states).argmax(-1).tolist() == [3, 3]
    assert distance_to_mean(states)[0].tolist() == [1.0, 1.0, 1.0, 9.0]


def test_replay_runs_the_recorded_counts_with_tokens_of_each_seed():
    spec = ReplaySpec(plan=((1.0, 0.5, 0.0), (0.0, 0.0, 0.0)))
    plans = _drive(_policy(spec, prompts=2), None, prompts=2)
    assert [_fractions(plan) for plan in plans[:5]] == [[1, 1, 1]] * 5
    assert _fractions(plans[5]) == [1, 0.5, 0]
    assert plans[6].skipped == (True, True)
    masks = plans[5].layers[1].mask
    assert not torch.equal(masks[0], masks[1])
    alone = _policy(spec, prompts=1).plan(5)
    assert torch.equal(alone.layers[1].mask[0], masks[0])


def test_the_papers_pattern_is_two_of_32_layers_and_three_percent_of_the_rest():
    plan = paper_2b_plan(32)
    assert len(plan) == 3
    assert [layer for layer, ratio in enumerate(plan[0]) if ratio == 1.0] == [8, 24]
    assert set(plan[0]) == {1.0, 0.03}
    plans = _drive(
        _policy(ReplaySpec(preset="paper-2b"), depth=32, schedule=scale_schedule(1.0, "1M")),
        None,
        prompts=1,
        depth=32,
        schedule=scale_schedule(1.0, "1M"),
    )
    assert [index for index, plan in enumerate(plans) if min(_fractions(plan)) < 1] == [10, 11, 12]


def test_skipvar_decides_each_prompts_late_scales_by_its_detail():
    spec = SkipvarSpec(skip_below=0.2, conditional_below=0.6)
    policy = _policy(spec, prompts=4)
    board = ((torch.arange(6)[:, None] + torch.arange(6)) % 2).float()
    slope = torch.sin(torch.arange(6) / 6 * 2 * torch.pi).expand(6, 6)
    codes = torch.stack([slope, slope + 1.5 * board, board, board * float("nan")])[:, None].repeat(1, 3, 1, 1)
    for scale in range(7):
        plan = policy.plan(scale)
        if plan.observe_codes:
            policy.observe_scale(scale, None, codes, (0, 1, 2, 3))
        late = scale >= 4
        assert plan.skipped == (late, False, False, False)
        assert plan.conditional_only == (False, late, False, False)
        assert plan.observe_codes == (scale == 3)


SMOOTH = torch.ones(16, 16)
CHECKERED = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float()
STRIPED = (torch.arange(16)[:, None] // 4 % 2).float().expand(16, 16)


def _drive_codes(policy, pictures):
    """Run all scales as a sampler would; `pictures` [16, 16] stand for every prompt's codes. Returns the plans."""
    codes = torch.stack(list(pictures))[:, None]
    plans = []
    for scale in range(len(SCHEDULE)):
        plan = policy.plan(scale)
        plans.append(plan)
        if plan.prompts and plan.observe_codes:
            policy.observe_scale(scale, None, codes, plan.prompts)
    return plans


@pytest.mark.parametrize("first", [1, 5, 6])
def test_without_a_detail_threshold_everything_runs(first):
    spec = DetailSpec(first_scale=first, detail_threshold=0.0, keep_ratio_floor=1.0)
    for plan in _drive_codes(_policy(spec, prompts=2), [SMOOTH, CHECKERED]):
        assert plan.skipped == (False, False)
        assert plan.layers == (None,) * 3


@pytest.mark.parametrize("first", [1, 5, 6])
@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_a_detail_threshold_that_nothing_reaches_skips_every_scale_from_the_first(first, floor):
    spec = DetailSpec(first_scale=first, detail_threshold=1e9, keep_ratio_floor=floor)
    plans = _drive_codes(_policy(spec, prompts=2), [SMOOTH, CHECKERED])
    assert [plan.skipped for plan in plans] == [(scale >= first,) * 2 for scale in range(7)]


def test_codes_are_looked_at_only_where_the_next_scale_may_be_pruned():
    plans = _drive_codes(_policy(DetailSpec(first_scale=4)), [STRIPED])
    assert [plan.observe_codes for plan in plans] == [scale in {3, 4, 5} for scale in range(7)]
    assert not any(plan.entropy_of or plan.changes_of or plan.restore for plan in plans)


def test_a_smooth_and_a_detailed_picture_of_a_batch_get_different_depths():
    spec = DetailSpec(first_scale=5, detail_threshold=0.05)
    plans = _drive_codes(_policy(spec, prompts=2), [SMOOTH, STRIPED])
    assert [plan.skipped for plan in plans] == [(False, False)] * 5 + [(True, False)] * 2
    for plan in plans[5:]:
        assert 0 < _fractions(plan, 1)[0] < 1
        assert len(set(_fractions(plan, 1))) == 1  # the same tokens in all layers,
        assert len({id(tokens) for tokens in plan.layers}) == 1
        assert plan.code_layers == 3  # and codes of no others


def test_the_tokens_of_an_edge_stay():
    edge = torch.zeros(16, 16)
    edge[:, 8:] = 1.0
    plans = _drive_codes(_policy(DetailSpec(first_scale=6, detail_threshold=0.05)), [edge])
    kept = plans[6].layers[0].mask[0].view(16, 16)
    assert kept.any(0).nonzero().flatten().tolist() == [7, 8]
    assert kept[:, 7:9].all()
    assert plans[6].counts(0) == (32,)


def test_a_prompt_whose_scale_was_skipped_stays_so_whoever_shares_its_batch():
    # Squares that a map of 4 x 4 averages out and finer ones show.
    squares = ((torch.arange(16)[:, None] // 2 + torch.arange(16) // 2) % 2).float()
    spec = DetailSpec(first_scale=3, detail_threshold=0.05)
    together = _drive_codes(_policy(spec, prompts=2), [squares, STRIPED])
    assert [plan.skipped for plan in together[3:]] == [(True, False)] * 4
    alone = _drive_codes(_policy(spec), [squares])
    assert [plan.skipped for plan in alone[3:]] == [(True,)] * 4
    later = _drive_codes(_policy(DetailSpec(first_scale=5, detail_threshold=0.05)), [squares])
    assert later[5].skipped == (False,)


def test_a_scale_of_which_too_few_tokens_would_run_is_skipped():
    edge = torch.zeros(16, 16)
    edge[:, 8:] = 1.0  # 32 of 256 tokens run
    for floor, skipped in ((0.125, False), (0.13, True)):
        spec = DetailSpec(first_scale=6, detail_threshold=0.05, keep_ratio_floor=floor)
        assert _drive_codes(_policy(spec), [edge])[6].skipped == (skipped,)


def test_detail_leaves_guidance_out_of_the_late_scales():
    found = [late_scales(DetailSpec(), scales) for scales in (13, 12, 10, 7)]
    assert found == [(9, 8), (8, 7), (7, 6), (5, 4)]
    policy = _policy(DetailSpec(conditional_from=6), prompts=2)
    assert [policy.plan(scale).conditional_only for scale in range(7)] == [(False,) * 2] * 6 + [(True,) * 2]
    never = _policy(DetailSpec(conditional_from=7))
    assert not any(any(never.plan(scale).conditional_only) for scale in range(7))


@pytest.mark.parametrize(
    "spec", [ToprovarSpec(), FastvarSpec(skipped_scales=0), DetailSpec(), ReplaySpec(preset="paper-2b")]
)
def test_every_policy_that_chooses_tokens_can_leave_guidance_out_of_late_scales(spec):
    def unguided(spec):
        plans = _drive(_policy(spec, prompts=2), _by_low_fraction([[0.5] * 7] * 2), prompts=2)
        return [plan.conditional_only for plan in plans]

    first = 4 if spec.name == "detail" else 7
    assert unguided(spec) == [(False,) * 2] * first + [(True,) * 2] * (7 - first)
    assert unguided(spec.model_copy(update={"conditional_from": 3})) == [(False,) * 2] * 3 + [(True,) * 2] * 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ToprovarSpec(representative_scale=6), "policy.representative_scale: scale 6"),
        (ToprovarSpec(conditional_from=8), "policy.conditional_from: scale 8, .* at most 7"),
        (FixedExitSpec(start_scale=7), "policy.start_scale: scale 7, counted from 0, .* at most 6"),
        (DetailSpec(first_scale=7), "policy.first_scale: scale 7, counted from 0, .* at most 6"),
        (DetailSpec(conditional_from=8), "policy.conditional_from: scale 8, .* at most 7"),
        (SkipvarSpec(decision_scale=6), "policy.decision_scale"),
        (SkipvarSpec(late_scales=7), "policy.late_scales: 7 of the 7 scales"),
        (FastvarSpec(skipped_scales=5), "policy.skipped_scales: with 2 pruned and 5 skipped"),
        (FastvarSpec(last_layer=3), "policy.last_layer: layer 3, counted from 0, is beyond the model's 3"),
        (FastvarSpec(first_layer=2, last_layer=1), "policy.first_layer: 2 comes after last_layer, 1"),
        (ReplaySpec(plan=((1.0,) * 3,) * 7), "policy.plan: it is about 7 scales"),
        (ReplaySpec(plan=((1.0,) * 3, (1.0,) * 2)), r"policy.plan\[1\]: the model has 3 layers, but 2"),
    ],
)
def test_a_policy_that_does_not_fit_the_model_is_refused(spec, message):
    with pytest.raises(ModelSpecError, match=message):
        policy_factory(spec, 7, 3)


def test_a_policy_reports_nothing_that_it_has_not_measured():
    rules = (DenseSpec(), FixedExitSpec(), FastvarSpec(), SkipvarSpec(), DetailSpec())
    for spec in (*rules, ReplaySpec(preset="paper-2b")):
        policy = _policy(spec)
        assert _measured(policy, 0) == ImageStatistics()
