"""Policies side by side, and what tells complexity: the arithmetic, and that equal work gives equal pictures."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from toprovar_batch.worker.generator import Generator
from toprovar_batch.worker.pruning.policies.specs import FastvarSpec, FixedExitSpec, ToprovarSpec
from toprovar_batch.worker.reference.complexity_study import ADAPTIVE, rank_correlation, roughness, study
from toprovar_batch.worker.reference.quality import QualityBench, quality_command, requests_of, warm_speed
from toprovar_batch.worker.reference.quality_tables import rows_of
from toprovar_batch.worker.reference.scenes import task_prompts
from toprovar_batch.worker.reference.scoring.scorer import load_scorer
from toprovar_batch.worker.reference.studies.comparisons import COMPARISONS
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec, ImageSpec, ModelSpec, RuntimeSpec

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator():
    spec = EngineSpec(
        model=ModelSpec(random_weights=True),
        image=ImageSpec(resolution="0.06M"),
    )
    generator = Generator(resolve(spec), RuntimeSpec(device="cpu", batch_size=2))
    generator.setup()
    return generator


@pytest.mark.slow
def test_policies_are_compared_over_the_same_prompts_and_seeds(generator):
    prompts = task_prompts("counting", 2)
    policies = {
        "exit": FixedExitSpec(start_scale=4),
        "whole": FastvarSpec(keep_ratio=(1.0,), skipped_scales=0),
    }
    bench = QualityBench(generator, load_scorer(CPU), prompts, 2, batch_size=2)
    records = bench.compare(policies)
    assert bench.compare({"again": policies["exit"]})["again"] is records["exit"]  # measured once
    assert list(records) == ["dense", "exit", "whole"]
    for name in ("dense", "whole"):  # keeping everything is dense, to the last pixel
        assert records[name]["identical"] == 4
        assert records[name]["ssim"] == pytest.approx(1)
        assert records[name]["token_layer_fraction"] == 1
        assert records[name]["difference"]["score"] == 0
    left_out = records["exit"]
    assert left_out["identical"] == 0
    assert left_out["ssim"] < 1
    assert left_out["token_layer_fraction"] == pytest.approx(
        (1 + 4 + 16 + 36) / (1 + 4 + 16 + 36 + 64 + 144 + 256)
    )
    assert left_out["start_scales"] == {"4": 4}
    assert len(left_out["seeds"]) == 2
    assert left_out["policy"]["name"] == "fixed_exit"
    assert [row[0] for row in rows_of(records)] == ["policy", "dense", "exit", "whole"]
    json.dumps(records, allow_nan=False)


def test_no_two_pictures_share_a_seed():
    requests = requests_of(task_prompts("colours", 3), 4, first_seed=100)
    assert [request.seed for request in requests] == list(range(100, 112))
    assert len({request.sample_id for request in requests}) == 12
    assert len({request.prompt for request in requests}) == 3


def test_every_comparison_is_of_different_policies_that_fit_the_reference_model():
    generator = Generator(resolve(EngineSpec()), RuntimeSpec(device="cpu"))
    for policies in COMPARISONS.values():
        assert len({policy.model_dump_json() for policy in policies.values()}) == len(policies)
        for policy in policies.values():
            generator.with_policy(policy)
    assert COMPARISONS["ladder"]["scale + layer + token"] == ToprovarSpec()


def test_an_unknown_comparison_is_named(tmp_path):
    result = CliRunner().invoke(
        quality_command, ["--comparison", "stairs", "--output", str(tmp_path / "q.json")]
    )
    assert result.exit_code == 2
    assert "stairs" in result.output


@pytest.mark.slow
def test_every_scale_of_a_dense_run_is_held_against_complexity(generator):
    record = study(generator, 5, 3)
    assert set(record["statistics"]) == {"low_entropy_ratio", "attn_entropy", "bit_entropy", "change"}
    for name, scales in record["statistics"].items():
        assert len(scales) == 7
        assert all(len(values) == 5 for values in scales)
        assert len(record["correlation"][name]) == 7
    entropy = torch.tensor(record["statistics"]["attn_entropy"])
    assert ((entropy >= 0) & (entropy <= 1)).all()
    bits = torch.tensor(record["statistics"]["bit_entropy"])
    assert ((bits >= 0) & (bits <= 1)).all()
    assert min(record["roughness"]) > 0
    assert record["adaptive"].keys() == ADAPTIVE.keys()
    for chosen in record["adaptive"].values():
        assert len(chosen["start_scale"]) == len(chosen["token_layer_fraction"]) == 5
        assert all(0 < fraction <= 1 for fraction in chosen["token_layer_fraction"])
        assert chosen["correlation"].keys() == {"start_scale", "token_layer_fraction"}
    json.dumps(record, allow_nan=False)  # what is the same for all correlates with nothing: null
    assert record["correlation"]["low_entropy_ratio"][0] == {"complexity": None, "roughness": None}


def test_speed_counts_no_batch_that_was_the_first_of_its_size():
    assert warm_speed([(4, 9.0), (4, 2.0), (4, 2.0), (3, 7.0)]) == 2.0
    assert warm_speed([(4, 9.0), (3, 7.0)]) is None


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((1, 2, 3), (10, 20, 21), 1.0),
        ((1, 2, 3), (3, 2, 1), -1.0),
        ((1, 2, 3, 4), (1, 1, 2, 2), 2 / math.sqrt(5)),
    ],
)
def test_rank_correlation(first, second, expected):
    assert rank_correlation(first, second) == pytest.approx(expected)


def test_a_constant_correlates_with_nothing():
    assert math.isnan(rank_correlation((1, 2, 3), (5, 5, 5)))


def test_roughness_is_the_mean_step_between_neighbours():
    pixels = torch.zeros(2, 2, 2, 3, dtype=torch.uint8)
    pixels[1, :, 1] = 100
    assert roughness(pixels).tolist() == pytest.approx([0, 100])
