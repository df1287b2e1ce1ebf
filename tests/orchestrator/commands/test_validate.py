"""`validate`: what it says about a good job, and that it leaves nothing behind."""

import json
import re
from dataclasses import replace

import fsspec
import pytest
from click.testing import CliRunner

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.job.checks import check_remote_files
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.check import check_output
from toprovar_batch.orchestrator.output.folder import open_output
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.errors import ModelSpecError, OutputFolderError
from toprovar_batch.worker.part_file import dataset_schema
from toprovar_batch.worker.reference.scenes import make_batch
from toprovar_batch.worker.resolved import ModelFiles, resolve_model
from toprovar_batch.worker.specs import ModelSpec

BASE = "prompts: {source: p.jsonl}\noutput: out\nmodel: {random_weights: true}\n"


@pytest.fixture
def validate(tmp_path, monkeypatch):
    """Run `validate` on a job beside which `p.jsonl` holds the given rows."""
    monkeypatch.chdir(tmp_path)

    def run(*options, rows=({"prompt": "a cat"},), extra=""):
        (tmp_path / "p.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        (tmp_path / "job.yaml").write_text(f"{BASE}{extra}")
        return CliRunner().invoke(main, ["validate", "job.yaml", *options])

    return run


def test_a_good_job_is_summed_up_and_nothing_is_written(validate, tmp_path):
    rows = [{"prompt": "a cat"}, {"prompt": ""}, {"prompt": "a dog"}, {"prompt": "a cat"}]
    result = validate("--set", "sampling.images_per_prompt=3", rows=rows, extra="shard_size: 5")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert f"prompts  4 from {tmp_path / 'p.jsonl'}, 1 of them unusable" in lines
    assert "samples  12 in 3 shards of up to 5" in lines
    assert f"output   {tmp_path / 'out'} (new)" in lines
    assert "policy   dense" in lines
    assert (
        "warning  prompts that cannot be used and become error rows: 1 (row 2: the prompt is empty)" in lines
    )
    assert "warning  repeated prompts, each copy with images of its own: 1 ('a cat' in rows 1, 4)" in lines
    assert lines[-1] == "The job is valid."
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.yaml", "p.jsonl"]


def test_a_policy_that_does_not_fit_the_model_is_refused(validate):
    result = validate(extra="policy: {name: fixed_exit, start_scale: 10}")
    assert result.exit_code == 2
    assert (
        "policy.start_scale: scale 10, counted from 0, is too late in this schedule; use at most 9"
        in result.stderr
    )


@pytest.mark.parametrize("name", ["demo", "throughput"])
def test_the_jobs_of_this_repository_are_valid(pytestconfig, tmp_path, name):
    path = str(pytestconfig.rootpath / f"jobs/{name}.yaml")
    result = CliRunner().invoke(main, ["validate", path, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output


def test_the_throughput_job_makes_what_its_comment_says_without_any_model_file(pytestconfig):
    path = pytestconfig.rootpath / "jobs/throughput.yaml"
    job = load_job(str(path))
    plan = plan_job(job)
    assert f"{plan.samples.num_rows:,} images at 1024 x 1024" in path.read_text()
    assert plan.samples.num_rows % job.shard_size == 0
    assert resolve_model(job.model).files == ModelFiles(None, None, None)


def test_the_mjhq_job_is_valid_for_prompts_of_its_form(pytestconfig, tmp_path):
    meta = {f"{index:040x}": {"category": "art", "prompt": f"picture {index}"} for index in range(200)}
    fsspec.filesystem("memory").pipe("/mjhq/meta_data.json", json.dumps(meta).encode())
    job = load_job(
        str(pytestconfig.rootpath / "jobs/mjhq.yaml"), ["prompts.source=memory://mjhq/meta_data.json"]
    )
    plan = plan_job(job)
    assert job.model.preset == "infinity-2b"
    assert plan.samples.column("sample_id").to_pylist() == list(meta)
    assert plan.samples.column_names[-1] == "category"


def test_the_prompts_of_the_demo_are_all_good_and_different(pytestconfig):
    plan = plan_job(load_job(str(pytestconfig.rootpath / "jobs/demo.yaml")))
    assert plan.num_prompts >= 24
    assert plan.warnings == ()


def test_the_demo_is_worded_as_the_captions_that_the_model_has_learnt(pytestconfig):
    prompts = plan_job(load_job(str(pytestconfig.rootpath / "jobs/demo.yaml"))).samples.column("prompt")
    learnt = {word for text in make_batch(0, 0, 4000).captions for word in _words(text)}
    assert {word for text in prompts.to_pylist() for word in _words(text)} <= learnt


def _words(text):
    return re.findall(r"\w+", text.lower())


# The output folder


@pytest.fixture
def begun(validate, tmp_path):
    """A job whose output folder has been begun."""
    validate()
    job = load_job("job.yaml")
    plan = plan_job(job)
    with open_output(job, plan, dataset_schema(())):
        pass
    return job, plan


def test_the_folder_of_the_same_job_may_be_continued(begun, validate):
    assert check_output(*begun) == "of this job, 0 of 1 shards done"
    assert validate("--set", "runtime.num_workers=7").exit_code == 0


def test_the_folder_of_another_job_is_refused_by_the_differing_fields(begun, validate):
    result = validate("--set", "sampling.seed=1")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "belongs to another job" in result.stderr
    assert "sampling.seed" in result.stderr
    assert "prompts (content)" in result.stderr


def test_an_output_below_a_file_is_refused(begun, tmp_path):
    job, plan = begun
    inside = job.model_copy(update={"output": str(tmp_path / "p.jsonl" / "out")})
    with pytest.raises(OutputFolderError, match=r"p\.jsonl is a file, not a folder|cannot be"):
        check_output(inside, plan)


# Model files elsewhere


def test_model_urls_are_looked_up():
    fsspec.filesystem("memory").pipe("/models/t.pth", b"x")
    assert list(check_remote_files(resolve_model(ModelSpec()).files)) == []  # what is shipped is not remote
    there = ModelFiles(transformer="memory://models/t.pth", vae="/local/vae.pth", text_encoder="./t5")
    assert list(check_remote_files(there)) == []
    with pytest.raises(ModelSpecError, match=r"model\.vae: memory://models/v\.pth: there is no such file"):
        list(check_remote_files(replace(there, vae="memory://models/v.pth")))


def test_a_server_that_does_not_answer_is_only_a_warning(monkeypatch):
    def unreachable(*_):
        raise TimeoutError("no answer")

    monkeypatch.setattr("toprovar_batch.orchestrator.job.checks._exists", unreachable)
    warnings = list(check_remote_files(resolve_model(ModelSpec(preset="infinity-2b")).files))
    assert [warning.split(":")[0] for warning in warnings] == [
        "model.transformer",
        "model.vae",
        "model.text_encoder",
    ]
    assert warnings[2] == "model.text_encoder: google/flan-t5-xl could not be looked up (TimeoutError)"
