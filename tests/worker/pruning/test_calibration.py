"""Calibration: what is foretold from recorded maps is what a run prunes, and the wish is met."""

import pytest
import torch

from toprovar_batch.kernels.ops import PYTORCH
from toprovar_batch.worker.batch_runner import BatchRunner
from toprovar_batch.worker.errors import ModelSpecError
from toprovar_batch.worker.guidance import text_rows
from toprovar_batch.worker.infinity.config import TransformerArchitecture
from toprovar_batch.worker.infinity.schedule import scale_schedule
from toprovar_batch.worker.models import random_transformer
from toprovar_batch.worker.pruning.calibration import (
    Recording,
    RecordingPolicy,
    check_recordable,
    mean_fraction,
    mean_pattern,
    recommend,
    simulate,
)
from toprovar_batch.worker.pruning.policies.base import BatchContext
from toprovar_batch.worker.pruning.policies.toprovar import ToprovarPolicy
from toprovar_batch.worker.sampler import sample_codes
from toprovar_batch.worker.sampling_settings import SamplingSettings

from .early_toprovar import early_toprovar

CPU = torch.device("cpu")
SCHEDULE = scale_schedule(1.0, "0.06M")
SIZES = TransformerArchitecture(depth=4, width=64, num_heads=2, text_width=24, bits_per_token=8)
PROMPTS = 6


def _run(make_policy):
    model = random_transformer(SIZES, 3, CPU, torch.float32)
    settings = SamplingSettings(cfg_scale=(3.0,) * 7, temperature=(1.0,) * 7)
    generator = torch.Generator().manual_seed(5)
    features = [torch.randn(4, SIZES.text_width, generator=generator) for _ in range(PROMPTS)]
    seeds = torch.arange(PROMPTS)
    with torch.inference_mode():
        text = model.encode_text(text_rows(model, features, [None] * PROMPTS, guided=True))
        sizes = {"largest_map": (64, 64), "codebook_dim": 8, "spatial_patchify": False}
        state = BatchRunner(model, text, SCHEDULE, settings, **sizes, backend=PYTORCH)
        policy = make_policy(BatchContext(SCHEDULE, SIZES.depth, seeds))
        sample_codes(state, seeds, policy)
    return state, policy


@pytest.fixture(scope="module")
def recording():
    return _run(lambda context: RecordingPolicy(context, guided=True))[1].recording


SPECS = [
    early_toprovar(beta=1e-3, a_min=0.1, a_max=0.7),
    early_toprovar(beta=1e-3, selection="draw", threshold_direction="at_most"),
    early_toprovar(beta=1e-3, token_pruning=False),
    early_toprovar(layer_pruning=False, restoration="identity", keep_ratio_floor=0.1, a_max=3.0),
    early_toprovar(layer_pruning=False, token_pruning=False),
    early_toprovar(scale_pruning=False, beta=5e-4),
]


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_foretold_is_what_a_run_prunes(recording, spec):
    state, _ = _run(lambda context: ToprovarPolicy(spec, context))
    assert simulate(spec, recording) == [state.history.work(prompt) for prompt in range(PROMPTS)]


@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.8])
@pytest.mark.parametrize(
    "base",
    [
        early_toprovar(),
        early_toprovar(layer_pruning=False),
        early_toprovar(scale_pruning=False),
        early_toprovar(threshold_direction="at_most", selection="draw"),
    ],
)
def test_the_wished_fraction_is_met_from_below(recording, base, fraction):
    found = recommend(base, [recording], fraction, 0.2)
    assert found.fraction == mean_fraction(found.spec, [recording])
    assert fraction - 0.03 < found.fraction <= fraction
    kept = found.spec.model_dump(exclude={"beta", "depth_threshold", "a_max"})
    assert kept == base.model_dump(exclude={"beta", "depth_threshold", "a_max"})


def test_no_wish_is_exceeded_by_rounding(recording):
    base = early_toprovar(scale_pruning=False)
    for wish in (0.7 + number / 400 for number in range(40)):
        assert recommend(base, [recording], wish, 0.2).fraction <= wish


def test_pruning_starts_as_late_as_the_wish_allows(recording):
    base = early_toprovar(layer_pruning=False)
    starts = [
        [
            work.pruning_start_scale
            for work in simulate(recommend(base, [recording], wish, 0.2).spec, recording)
        ]
        for wish in (0.3, 0.8)
    ]
    assert all(early <= late for early, late in zip(*starts, strict=True))
    assert sum(starts[0]) < sum(starts[1])


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_the_wished_share_of_layers_is_global(recording, share):
    spec = recommend(early_toprovar(), [recording], 0.9, share).spec
    ratios = recording.singular_value_ratios(2)
    scores = torch.exp(-spec.beta * (ratios - 1))
    assert (scores < spec.layer_threshold).double().mean().item() == pytest.approx(share, abs=0.05)


def test_a_wish_that_cannot_be_met_says_what_can(recording):
    with pytest.raises(ModelSpecError, match=r"--fraction: 0\.01 cannot be reached .* at least 0\."):
        recommend(early_toprovar(), [recording], 0.01, 0.2)


def test_saliencies_that_look_at_pruned_scales_cannot_be_calibrated():
    with pytest.raises(ModelSpecError, match=r"policy\.saliency: code_detail"):
        check_recordable(early_toprovar(saliency="code_detail"))
    check_recordable(early_toprovar(saliency="code_detail", token_pruning=False))
    check_recordable(early_toprovar())


def test_the_mean_pattern_can_be_replayed(recording):
    works = simulate(SPECS[0], recording)
    plan = mean_pattern(works)
    first = min(work.pruning_start_scale for work in works)
    assert (len(plan), len(plan[0])) == (7 - first, 4)
    tokens = [h * w for h, w in SCHEDULE[first:]]
    replayed = sum(n * sum(row) for n, row in zip(tokens, plan, strict=True))
    ran = sum(sum(map(sum, work.counts[first:])) for work in works) / PROMPTS
    assert replayed == pytest.approx(ran, rel=1e-4)
    assert mean_pattern(simulate(early_toprovar(depth_threshold=1.0), recording)) == []


@pytest.mark.parametrize("value", [2.0, float("nan")])
def test_maps_that_say_nothing_are_an_unreachable_wish_and_no_crash(value):
    maps = [torch.full((3, 2, height * width), value) for height, width in SCHEDULE]
    empty = Recording(SCHEDULE, 3, torch.arange(2), guided=True, maps=maps)
    with pytest.raises(ModelSpecError, match="cannot be reached"):
        recommend(early_toprovar(), [empty], 0.5, 0.2)
