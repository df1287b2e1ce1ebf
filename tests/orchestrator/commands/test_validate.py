"""`validate`: what it says about a good job, and that it leaves nothing behind."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.job.checks import check_remote_files
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.check import check_output
from toprovar_batch.orchestrator.output.folder import OutputFolder, locate_output, open_output
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.orchestrator.run import ray_probe
from toprovar_batch.worker.errors import ModelSpecError, OutputFolderError
from toprovar_batch.worker.part_file import dataset_schema
from toprovar_batch.worker.reference.scenes import make_batch
from toprovar_batch.worker.resolved import ModelFiles, resolve_model
from toprovar_batch.worker.specs import ModelSpec
from toprovar_batch.worker.storage import locate

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
    assert check_output(*begun) == "of this job, 0 of 1 shard done"
    assert validate("--set", "runtime.num_workers=7").exit_code == 0


def test_the_folder_of_another_job_without_a_part_would_be_taken_over(begun, validate):
    result = validate("--set", "sampling.seed=1")
    assert result.exit_code == 0
    assert "(of another job that made no part; a run takes it over)" in result.stdout


def test_the_folder_of_another_job_is_refused_by_the_differing_fields(begun, validate):
    data = Path(begun[0].output, "data")
    data.mkdir()
    (data / "part-00000-of-00001.parquet").touch()
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


def test_two_colons_in_local_paths_are_part_of_the_name(validate, tmp_path):
    (tmp_path / "a::b.txt").write_text("a cat\n")
    result = validate("--set", "prompts.source=a::b.txt")
    assert result.exit_code == 0, result.output
    assert f"prompts  1 from {tmp_path / 'a::b.txt'}, 0 of them unusable" in result.stdout.splitlines()
    folder = locate_output(str(tmp_path / "out::x"))
    assert locate(folder.part_url(0, 1))[1] == str(tmp_path / "out::x/data/part-00000-of-00001.parquet")


@pytest.mark.parametrize(
    ("options", "start"),
    [
        (["--output", "memory://a::b"], "memory://a::b: "),
        (["--set", "prompts.source=memory://a::b"], "memory://a::b"),
        (
            ["--set", "model.random_weights=false", "--set", "model.vae=memory://a::b"],
            "model.vae: memory://a::b: ",
        ),
        (["--output", "~nobody99/out"], "~nobody99/out: no home folder is known"),
        (["--set", "prompts.source=~nobody99/p"], "~nobody99/p: no home folder is known"),
        (["--set", "model.vae=~nobody99/vae"], "~nobody99/vae: no home folder is known"),
        (["--set", "policy.file=~nobody99/p.yaml"], "~nobody99/p.yaml: no home folder is known"),
    ],
)
def test_an_address_that_cannot_be_resolved_is_one_sentence(validate, options, start):
    result = validate(*options)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"Error: {start}")
    assert "holds ::" in result.stderr or "no home folder" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "command", [["validate"], ["status"], ["sheet", "--file", "x.jpg"], ["evaluate"], ["verify"]]
)
def test_the_home_of_an_unknown_user_is_refused_by_every_command(command):
    result = CliRunner().invoke(main, [*command, "~nobody99/x"])
    assert result.exit_code == 2, result.output
    assert "no home folder is known for ~nobody99" in result.stderr


def test_names_beyond_ascii_work_in_the_c_locale(tmp_path):
    (tmp_path / "bücher").mkdir()
    (tmp_path / "bücher/wörter.txt").write_text("a cat\n", encoding="utf-8")
    job = tmp_path / "bücher/jöb.yaml"
    job.write_text(
        "prompts: {source: wörter.txt}\noutput: öut\nmodel: {random_weights: true}\n", encoding="utf-8"
    )
    program = "from toprovar_batch.orchestrator.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "validate", str(job)],
        cwd=tmp_path,
        env={**os.environ, "LC_ALL": "C", "LANG": "C"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"output   {tmp_path / 'öut'} (new)" in done.stdout.decode()


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_prompts_come_from_standard_input(tmp_path, name):
    (tmp_path / "job.yaml").write_text(BASE)
    program = "from toprovar_batch.orchestrator.cli import main; main()"
    options = ["--set", f"prompts.source={name}", "--set", "prompts.format=txt", "--output", "out"]
    done = subprocess.run(
        [sys.executable, "-c", program, "validate", str(tmp_path / "job.yaml"), *options],
        cwd=tmp_path,
        input=b"a cat\ntwo cats\n",
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"prompts  2 from {name}, 0 of them unusable" in done.stdout.decode()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--set", "policy.layers=1"],
            "policy.name is missing and has no default; it is one of dense, toprovar, fastvar, skipvar, detail, ",
        ),
        (["--set", "policy.name=null"], "replay, got nothing (null)"),
        (["--set", "model.preset=foo"], "model.preset: 'foo' does not exist; presets: tiny, infinity-2b, "),
        (
            ["--set", "prompts.source=http://127.0.0.1:9/p.txt"],
            "p.txt cannot be read: ClientConnectorError: ",
        ),
    ],
)
def test_a_mistake_is_told_with_what_there_is(validate, options, message):
    result = validate(*options)
    assert result.exit_code == 2, result.output
    assert message in result.stderr


def test_a_server_that_cannot_be_asked_is_not_one_without_the_file():
    files = ModelFiles("http://127.0.0.1:9/t.pth", None, None)
    assert list(check_remote_files(files)) == [
        "model.transformer: http://127.0.0.1:9/t.pth could not be looked up (ClientConnectorError)"
    ]


def test_one_of_a_kind_is_no_plural(validate):
    assert "samples  1 in 1 shard of up to 8" in validate().stdout.splitlines()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--output", "http://127.0.0.1:9/out"],
            "http://127.0.0.1:9/out: nothing can be written through http://",
        ),
        (["--output", "zip://x"], "zip://x: nothing can be written through zip://"),
        (
            ["--output", "/tmp/a::b"],
            "/tmp/a::b: holds ::, which datasets.load_dataset would take for several",
        ),
        (["--output", "ftp://127.0.0.1:9/out"], "ftp://127.0.0.1:9/out: [Errno 111] Connection refused"),
        (["--output", "s4://b/out"], "s4://b/out: nothing is known of s4://"),
        (
            ["--set", "prompts.source=s4://b/p.txt"],
            "s4://b/p.txt cannot be read: nothing is known of s4://",
        ),
        (
            ["--set", "model.random_weights=false", "--set", "model.vae=s4://b/vae"],
            "model.vae: s4://b/vae: nothing is known of s4://",
        ),
    ],
)
def test_validate_and_submit_refuse_an_address_in_the_same_sentence(validate, options, message):
    result = validate(*options)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith(f"Error: {message}")
    assert result.stderr.count("\n") == 1
    submitted = CliRunner().invoke(main, ["submit", "job.yaml", *options])
    assert (submitted.exit_code, submitted.stderr) == (2, result.stderr)


@pytest.mark.parametrize("command", ["validate", "submit"])
def test_an_output_for_reading_only_is_refused_once_and_first(validate, monkeypatch, command):
    asked = []

    def refuse(output):
        asked.append(output)
        raise OutputFolderError("no")

    monkeypatch.setattr("toprovar_batch.orchestrator.output.check.refuse_read_only", asked.append)
    validate()
    assert len(asked) == 1
    monkeypatch.setattr("toprovar_batch.orchestrator.output.check.refuse_read_only", refuse)
    monkeypatch.setattr(OutputFolder, "read_job", None)
    result = CliRunner().invoke(main, [command, "job.yaml"])
    assert (result.exit_code, result.stderr) == (2, "Error: no\n")


def test_a_model_that_this_machine_cannot_hold_is_told_and_one_that_none_holds_is_refused(
    validate, monkeypatch
):
    module = "toprovar_batch.orchestrator.job.checks"
    monkeypatch.setattr(f"{module}._has_gpu", lambda: False)
    monkeypatch.setattr(f"{module}.host_memory", lambda: 10**6)
    here = validate()
    assert (here.exit_code, here.stderr) == (0, "")
    [line] = [line for line in here.stdout.splitlines() if line.startswith("warning  ")]
    sentence = line.removeprefix("warning  ")
    assert sentence.startswith("model.")
    assert "this machine has 0.0 GB of memory for it" in sentence
    for command in (["submit", "job.yaml"], ["calibrate", "job.yaml", "--file", "policy.yaml"]):
        result = CliRunner().invoke(main, [*command, "--set", "output=nowhere"])
        assert (result.exit_code, result.stderr) == (2, f"Error: {sentence}\n")
    assert not Path("nowhere").exists()
    for has_gpu in (False, True):
        monkeypatch.setattr(f"{module}._has_gpu", lambda has_gpu=has_gpu: has_gpu)
        absurd = validate("--set", "model.architecture.depth=9999999")
        assert absurd.exit_code == 2
        assert absurd.stderr.startswith("Error: model.architecture.depth: with 9999999 the model has ")
    assert validate().stdout.count("warning") == 0  # its GPU is asked when the model is loaded


def test_an_output_that_lacks_a_package_names_the_extra(validate, monkeypatch):
    def no_s3fs(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", no_s3fs)
    result = validate("--output", "s3://bucket/out")
    sentence = "s3:// needs another package: pip install toprovar-batch[s3]"
    assert (result.exit_code, result.stderr) == (2, f"Error: s3://bucket/out: {sentence}\n")
    options = ["--set", "model.random_weights=false", "--set", "model.vae=s3://bucket/vae"]
    assert validate(*options).stderr == f"Error: model.vae: s3://bucket/vae: {sentence}\n"


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9: [Errno 111] Connection refused"),
        (
            "http://head:8265",
            (
                "http://head:8265 is of Ray Jobs; send the job there with submit --address http://head:8265, or name "
                "the cluster's own address, such as head:6379"
            ),
        ),
        ("head", "head is no address; name host:port, ray://host:port or auto"),
    ],
)
@pytest.mark.parametrize("as_variable", [False, True])
def test_a_cluster_that_cannot_be_joined_is_refused_as_a_run_refuses_it(
    validate, monkeypatch, address, sentence, as_variable
):
    # Another test may have begun a Ray in this process, and others need it after this one.
    monkeypatch.setattr("toprovar_batch.orchestrator.run.ray_session.ray.is_initialized", lambda: False)
    monkeypatch.setattr("toprovar_batch.orchestrator.run.ray_session.ray.shutdown", lambda: None)
    monkeypatch.setattr(ray_probe, "_REFUSALS_S", 0.0)
    monkeypatch.setattr(ray_probe.wait_for_ray, "__defaults__", (1.0, 0.0))
    if as_variable:
        monkeypatch.setenv("RAY_ADDRESS", address)
    options = [] if as_variable else ["--set", f"runtime.ray_address={address}"]
    result = validate(*options)
    assert (result.exit_code, result.stderr) == (2, f"Error: runtime.ray_address: {sentence}\n")
    submitted = CliRunner().invoke(main, ["submit", "job.yaml", *options])
    assert (submitted.exit_code, submitted.stderr.splitlines()[-1:]) == (2, result.stderr.splitlines())


def test_more_cores_per_worker_than_there_are_are_told_as_by_a_run(validate):
    result = validate("--set", "runtime.cpus_per_worker=10000")
    assert result.exit_code == 0, result.output
    assert "warning  runtime.cpus_per_worker is 10000, and this machine has " in result.stdout


def test_a_refusal_is_a_json_record_too(validate):
    result = validate("--json", "--set", "model.preset=nix")
    assert result.exit_code == 2
    record = json.loads(result.stdout)
    assert record["valid"] is False
    assert result.stderr == f"Error: {record['error']}\n"
    assert json.loads(validate("--json").stdout)["valid"] is True


def test_the_hub_that_cannot_be_reached_is_one_sentence(validate, monkeypatch):
    httpx = pytest.importorskip("huggingface_hub.errors").HfHubHTTPError.__mro__[1]

    def offline(*args, **kwargs):
        raise httpx("Name or service not known")

    monkeypatch.setattr(OutputFolder, "read_job", offline)
    result = validate()
    assert result.exit_code == 2
    assert result.stderr.endswith("out: cannot be used: Name or service not known\n")


def test_a_record_for_programs(validate, tmp_path):
    rows = [{"prompt": "a cat"}, {"prompt": ""}]
    result = validate("--json", rows=rows)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["warnings"] == [
        "prompts that cannot be used and become error rows: 1 (row 2: the prompt is empty)"
    ]
    assert (record["prompts"], record["prompts_unusable"], record["samples"], record["shards"]) == (
        2,
        1,
        2,
        1,
    )
    assert (record["output"], record["output_state"]) == (str(tmp_path / "out"), "new")
    assert set(record["model_files"]) == {"transformer", "vae", "text_encoder"}
    assert validate("--json", "--set", "policy=foo").exit_code == 2
