"""The calibrate command: a policy file that jobs can name, and whose promise a run keeps."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from toprovar_batch.orchestrator.calibrate import choose_requests
from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.job import load_job
from toprovar_batch.orchestrator.plan import plan_job


def _calibrate(*arguments):
    return CliRunner().invoke(main, ["calibrate", *map(str, arguments)])


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
    assert {"date", "versions", "job", "resolution", "wished_fraction"} <= provenance.keys()
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
    assert [request.prompt for request in choose_requests(plan, 4)] == ["0", "2", "5", "7"]
    assert len(choose_requests(plan, 100)) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--file", "no/folder/x.yaml"), "--file: the folder of no/folder/x.yaml does not exist"),
        (("--file", "x.yaml", "--set", "policy=fastvar"), "policy.name: fastvar cannot be calibrated"),
        (("--file", "x.yaml", "--fraction", "1"), "is not in the range 0<x<1"),
        ((), "Missing option '--file'"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(write_job, arguments, message):
    result = _calibrate(write_job(), *arguments)
    assert result.exit_code == 2
    assert message in result.output
