"""The calibrate command: a policy file that jobs can name, and whose promise a run keeps."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner

from toprovar_batch.orchestrator.calibration.goal import (
    Candidate,
    Made,
    score_loss,
    ssim_loss,
    strongest,
)
from toprovar_batch.orchestrator.calibration.search import fraction_of
from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.commands.calibrate import _obstacle, choose_sample
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.pruning.policies.specs import FixedExitSpec
from toprovar_batch.worker.reference.scenes import Wanted
from toprovar_batch.worker.reference.scoring.judging import Expectation
from toprovar_batch.worker.request import GenerationRequest


def _calibrate(*arguments):
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)])


@pytest.mark.slow
def test_a_job_under_the_written_policy_does_the_promised_work(write_job, tmp_path, ray_cluster):
    job, file, replay = write_job(), tmp_path / "found.yaml", tmp_path / "replay.yaml"
    wish = ("--prompts", 8, "--fraction", 0.6, "--global-layers", 0.5)
    result = _calibrate(job, "--file", file, "--replay", replay, *wish)
    assert result.exit_code == 0, result.output
    assert "low-entropy ratio of each scale" in result.output
    assert f"policy: {{file: {file}}}" in result.output
    content = yaml.safe_load(file.read_text())
    provenance = content.pop("provenance")
    assert provenance["prompts"] == 8
    assert provenance["model"]["preset"] == "tiny"
    assert {"date", "versions", "job", "resolution", "goal", "wished"} <= provenance.keys()
    assert provenance["sampling"]["cfg_scale"] == 3.0
    assert (provenance["global_layers"], provenance["dtype"], provenance["backend"]) == (
        0.5, "float32", "torch",
    )  # fmt: skip
    assert len(set(provenance["sample_ids"])) == provenance["prompts"]
    assert 0.5 < provenance["found_fraction"] <= 0.6
    settings = load_job(job, [f"policy.file={file}"]).policy
    assert settings.model_dump(mode="json", include=set(content)) == content
    assert load_job(job, [f"policy.file={replay}"]).policy.name == "replay"
    ran = CliRunner().invoke(main, ["submit", job, "--set", f"policy.file={file}"])
    assert ran.exit_code == 0, ran.output
    rows = pa.concat_tables(pq.read_table(part) for part in sorted((tmp_path / "out/data").iterdir()))
    fractions = rows["token_layer_fraction"].to_pylist()
    assert sum(fractions) / len(fractions) == pytest.approx(provenance["found_fraction"], abs=1e-6)


def test_the_switches_of_the_job_are_kept(write_job, tmp_path):
    file = tmp_path / "found.yaml"
    switches = (
        "--set",
        "policy=toprovar",
        "--set",
        "policy.layer_pruning=false",
        "--set",
        "policy.a_min=0.1",
    )
    result = _calibrate(write_job(), "--file", file, "--prompts", 2, *switches)
    assert result.exit_code == 0, result.output
    content = yaml.safe_load(file.read_text())
    assert (content["layer_pruning"], content["a_min"], content["name"]) == (False, 0.1, "toprovar")


def test_samples_are_spread_over_the_good_ones(write_job, tmp_path):
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(f'{{"prompt": "{"" if n == 3 else n}"}}\n' for n in range(9)))
    plan = plan_job(load_job(write_job(), [f"prompts.source={source}"]))
    assert choose_sample(plan, 4)["prompt"].to_pylist() == ["0", "2", "5", "7"]
    assert choose_sample(plan, 100).num_rows == 8


@pytest.mark.slow
def test_a_loss_in_likeness_is_searched_by_generating(write_job, tmp_path):
    file = tmp_path / "found.yaml"
    settings = ("policy=detail", "policy.first_scale=4", "policy.conditional_from=7")
    wish = ("--prompts", 3, "--ssim-loss", 0.3, *(part for each in settings for part in ("--set", each)))
    result = _calibrate(write_job(), "--file", file, *wish)
    assert result.exit_code == 0, result.output
    content = yaml.safe_load(file.read_text())
    provenance = content.pop("provenance")
    assert (content["name"], content["first_scale"]) == ("detail", 4)
    assert (provenance["goal"], provenance["wished"], provenance["prompts"]) == ("ssim_loss", 0.3, 3)
    assert provenance["loss"] <= 0.3
    best = min((row for row in provenance["tried"] if row["loss"] <= 0.3), key=lambda row: row["fraction"])
    assert provenance["found_fraction"] == best["fraction"]
    assert result.output.count("of SSIM lost") == len(provenance["tried"])
    assert load_job(write_job(), [f"policy.file={file}"]).policy.name == "detail"


@pytest.mark.slow
def test_work_of_detail_is_searched_by_generating(write_job, tmp_path):
    file = tmp_path / "found.yaml"
    wish = ("--prompts", 2, "--fraction", 0.4, "--set", "policy=detail", "--set", "policy.first_scale=4")
    result = _calibrate(write_job(), "--file", file, *wish)
    assert result.exit_code == 0, result.output
    provenance = yaml.safe_load(file.read_text())["provenance"]
    assert provenance["found_fraction"] <= 0.4
    assert provenance["found_fraction"] == max(
        row["fraction"] for row in provenance["tried"] if row["fraction"] <= 0.4
    )
    unreachable = _calibrate(write_job(), "--file", file, *wish, "--fraction", 0.01)
    assert unreachable.exit_code == 2
    assert "--fraction: nothing that was tried reaches 0.01; the nearest, " in unreachable.output


def test_toprovar_is_searched_for_a_loss_in_score(write_job, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": f"a {colour} cube", "task": "colours", "relation": None}
        | {"wanted": json.dumps([{"shape": "cube", "colour": colour, "count": 1}])}
        for colour in ("red", "blue")
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "found.yaml"
    wish = ("--score-loss", 1, "--set", f"prompts.source={prompts}")
    result = _calibrate(write_job(), "--file", file, *wish)
    assert result.exit_code == 0, result.output
    content = yaml.safe_load(file.read_text())
    assert content["name"] == "toprovar"
    # Random weights draw nothing right, dense or pruned, so the strongest policy loses nothing.
    assert content["provenance"]["loss"] == 0
    assert len(content["provenance"]["tried"]) == 1
    assert "points lost" in result.output
    assert "low-entropy ratio of each scale" in result.output
    rows[1]["wanted"] = "[]"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    broken = _calibrate(write_job(), "--file", file, *wish)
    assert broken.exit_code == 2
    assert "--score-loss: sample " in broken.output


def test_the_strongest_candidate_is_one_that_there_is():
    for least in (number / 997 for number in range(998)):
        assert least <= fraction_of(1.0, least) == pytest.approx(least, abs=1e-12)
        assert least <= fraction_of(0.37, least) <= fraction_of(0.0, least) == 1


def test_what_prunes_nothing_has_no_pattern_and_is_said(write_job, tmp_path):
    file, replay = tmp_path / "found.yaml", tmp_path / "replay.yaml"
    whole = ("policy=toprovar", "policy.token_pruning=false", "policy.layer_threshold=1", "policy.beta=5")
    settings = [part for each in whole for part in ("--set", each)]
    wish = ("--prompts", 2, "--ssim-loss", 0.5, *settings)
    result = _calibrate(write_job(), "--file", file, "--replay", replay, *wish)
    assert result.exit_code == 0, result.output
    assert "that is nothing pruned" in result.output
    assert "--replay: nothing is pruned" in result.output
    told = ["loading the model", "running dense", "making dense pictures", "try 1 of at most 6"]
    assert [line for line in result.stderr.splitlines() if line in told] == told
    assert not set(result.stdout.splitlines()) & set(told)
    assert file.exists()
    assert not replay.exists()


@pytest.mark.parametrize("most", [0.0, 0.1, 0.5, 0.73, 2.0])
def test_bisection_finds_the_strongest_that_loses_little_enough(most):
    best, tried = strongest(
        lambda strength: FixedExitSpec(start_scale=1 + round(1000 * strength)),
        lambda policy: Candidate(policy, 0.5, (policy.start_scale - 1) / 1000, None),
        most,
    )
    if most == 0:
        assert best is None
    else:
        assert min(most, 1.0) - 1 / 32 <= best.loss <= most
        assert best.loss == max(each.loss for each in tried if each.loss <= most)
    assert len(tried) == (1 if most >= 1 else 6)


def test_losses_are_against_the_dense_pictures():
    generator = torch.Generator().manual_seed(0)
    dense = Made(list(torch.randint(0, 256, (3, 64, 64, 3), generator=generator, dtype=torch.uint8)), 1.0)
    assert ssim_loss(dense, dense) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))
    other = Made([picture.flip(0) for picture in dense.pictures], 0.5)
    loss, error = ssim_loss(other, dense)
    assert 0.5 < loss < 1.5
    assert error > 0
    assert ssim_loss(Made(other.pictures[:1], 0.5), Made(dense.pictures[:1], 1.0))[1] is None
    assert ssim_loss(Made([None], 0.5), Made(dense.pictures[:1], 1.0)) == (1.0, None)


def test_a_point_of_score_is_a_hundredth_each_task_counting_the_same():
    wanted = (Wanted("cube", "red", 1),)
    requests = [GenerationRequest(str(row), f"prompt {row}", None, row) for row in range(4)]
    expected = [Expectation("colours", wanted, None)] * 3 + [Expectation("counting", wanted, None)]

    class Detector:
        """Sees a red cube where the picture is white."""

        device = torch.device("cpu")

        def read(self, images):
            thing = SimpleNamespace(shape="cube", colour="red", box=(0, 0, 1, 1))
            return [[thing] if image.mean() > 0.5 else [] for image in images], torch.zeros(len(images), 1)

    def made(*shown):
        pictures = [
            None if right is None else torch.full((8, 8, 3), 255 * right, dtype=torch.uint8)
            for right in shown
        ]
        return Made(pictures, 1.0)

    loss = score_loss(requests, expected, SimpleNamespace(detector=Detector()))
    assert loss(made(1, 1, 1, 1), made(1, 1, 1, 1))[0] == 0
    assert loss(made(1, 0, 1, 1), made(1, 1, 1, 1))[0] == pytest.approx(100 / 3 / 2)
    assert loss(made(1, 1, 1, 0), made(1, 1, 1, 1))[0] == pytest.approx(50)
    assert loss(made(1, 1, 1, 1), made(1, 0, 1, 1))[0] == pytest.approx(-100 / 3 / 2)
    assert loss(made(1, 1, 1, None), made(1, 1, 1, 1))[0] == pytest.approx(50)  # no picture has failed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--file", "no/folder/x.yaml"), "--file: the folder of no/folder/x.yaml does not exist"),
        (("--file", ""), "--file: the name of the file is empty; give one"),
        (("--file", "/proc/x.yaml"), "Error: --file: /proc/x.yaml "),  # permissions do not tell
        (("--file", "."), "--file: . is a folder; name a file in it"),
        (("--file", "x.yaml", "--replay", "/"), "--replay: / is a folder; name a file in it"),
        (("--file", "x.yaml", "--replay", "./x.yaml"), "--replay: ./x.yaml would replace what --file names"),
        (("--file", "x" * 300), "cannot be written: File name too long"),
        (
            (
                "--file",
                "x.yaml",
                "--ssim-loss",
                "0.1",
                "--set",
                "policy={name: toprovar, saliency: code_detail}",
            ),
            "policy.saliency: code_detail looks at pruned scales",
        ),
        (("--file", "x.yaml", "--fraction", "nan"), "nan is no finite number"),
        (("--file", "x.yaml", "--score-loss", "inf"), "inf is no finite number"),
        (("--file", "x.yaml", "--set", "policy=fastvar"), "policy.name: fastvar cannot be calibrated"),
        (("--file", "x.yaml", "--fraction", "1"), "is not in the range 0<x<1"),
        (
            ("--file", "x.yaml", "--fraction", "0.5", "--score-loss", "1"),
            "--fraction and --score-loss are 2 goals; name one",
        ),
        (("--file", "x.yaml", "--score-loss", "1"), "have no column task and no wanted and no relation"),
        (("--file", "x.yaml", "--replay", "y.yaml", "--set", "policy=detail"), "--replay: it is written for"),
        ((), "Missing option '--file'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(write_job, arguments, message):
    result = _calibrate(write_job(), *arguments)
    assert result.exit_code == 2
    assert message in result.output


def test_what_is_read_is_not_replaced(write_job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = Path(write_job())
    before = job.read_text()
    result = _calibrate(job, "--file", f"./{job.name}")
    assert result.exit_code == 2
    assert f"--file: ./{job.name} would replace {job}; name another file" in result.output
    assert job.read_text() == before


def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    file = tmp_path / "policy.yaml"
    file.touch()
    assert _obstacle(str(file)) is None
    monkeypatch.setattr("os.access", lambda place, _mode: place == file)  # as it is for users other than root
    assert "may not be written" in _obstacle(str(file))
