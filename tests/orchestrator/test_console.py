import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import ray
from click.testing import CliRunner

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.console import echo, echo_json, printable
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.card import _in_markdown
from toprovar_batch.orchestrator.output.folder import open_output
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.orchestrator.run.submission import submit
from toprovar_batch.worker.part_file import dataset_schema

EVIL = "a\x1b[2Jb\nc\x9bd\u202ee\ud800"


def test_a_line_holds_nothing_that_a_terminal_obeys(capsys):
    echo(EVIL)
    assert capsys.readouterr().out == "a\\x1b[2Jb\\nc\\x9bd\\u202ee\\ud800\n"


def test_json_reads_back_and_holds_no_control(capsys):
    echo_json({"id": EVIL})
    text = capsys.readouterr().out
    assert json.loads(text)["id"] == EVIL
    assert text == '{\n  "id": "a\\u001b[2Jb\\nc\\u009bd\\u202ee\\ud800"\n}\n'


def test_every_command_prints_through_the_console():
    root = Path(__file__).parents[2] / "orchestrator"
    users = {
        path.name for path in root.rglob("*.py") if re.search(r"click\.(echo|secho)\(", path.read_text())
    }
    assert users == {"console.py"}


def test_an_error_about_a_name_is_one_safe_line():
    result = CliRunner().invoke(main, ["validate", "no\x1b[2Jsuch?token=abc.yaml"])
    assert result.exit_code == 2
    assert result.stderr == "Error: no\\x1b[2Jsuch?token=***: there is no such job file\n"


def test_a_job_name_is_no_markup():
    assert _in_markdown("a <b>\n# [x](y)") == "a &#60;b&#62;&#92;n&#35; &#91;x&#93;(y)"
    assert printable("Größe 漢字") == "Größe 漢字"


SECRET = "S3cr3tvalue"


def test_no_command_writes_or_prints_a_credential(write_job, tmp_path, monkeypatch):
    monkeypatch.setenv("TOPROVAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "1000")
    job = write_job()
    signed = f"http://user:{SECRET}@127.0.0.1:9/file.txt?X-Amz-Signature={SECRET}&other={SECRET}"
    keys = ["prompts.source", "model.vae", "model.transformer", "model.text_encoder", "output", "policy.file"]
    keys += [f"name={signed}", f"sampling.seed={signed}", signed]
    calls = [
        [*command, job, "--set", key if "=" in key else f"{key}={signed}"]
        for command in (["validate"], ["submit"], ["calibrate", "--file", str(tmp_path / "policy.yaml")])
        for key in keys
        if (command[0], key.partition("=")[0])
        not in {("submit", "name"), ("calibrate", "name"), ("calibrate", "output")}
        and not (command[0] != "validate" and key.startswith("model"))
    ]
    calls += [
        [command, signed] for command in ("validate", "submit", "status", "evaluate", "verify", "bench")
    ]
    calls += [["sheet", signed, "--file", str(tmp_path / "s.jpg")], ["submit", job, "--output", signed]]
    for call in calls:
        result = CliRunner().invoke(main, call)
        assert SECRET not in result.output, call
        assert result.exit_code in (0, 2), (call, result.output, result.exception)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def test_a_run_over_ray_leaves_no_credential(write_job, tmp_path, make_engine_factory, capfd):
    signed = f"https://user:{SECRET}@host/vae.pth?X-Amz-Signature={SECRET}"
    job = write_job(["a cat", "raise", "kill-once now"])
    logs = Path(ray._private.worker._global_node.get_session_dir_path())
    submit(job, overrides=[f"name={signed}"], engine_factory=make_engine_factory(complaint=f"{signed}: no"))
    rows = pq.read_table(tmp_path / "out/data").to_pylist()
    [error] = [row["error"] for row in rows if row["status"] == "error"]
    assert error == "ValueError: https://***@host/vae.pth?X-Amz-Signature=***: no"
    written = [path for folder in (tmp_path, logs) for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in written)
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in "".join(capfd.readouterr())


def test_a_renewed_signature_continues_the_job_and_nothing_is_recorded_of_it(write_job, tmp_path):
    def begin(secret):
        signed = f"http://user:{secret}@127.0.0.1:9/vae.pth?X-Amz-Signature={secret}"
        job = load_job(
            path,
            [f"model.vae={signed}", "model.random_weights=false", "model.architecture={}", f"name={signed}"],
        )
        with open_output(job, plan_job(job), dataset_schema(())) as folder:
            return folder.job

    path = write_job()
    assert begin(SECRET) == begin(f"{SECRET}-renewed")
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"job.json", "README.md"} <= {path.name for path in written}
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
