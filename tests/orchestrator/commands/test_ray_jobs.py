"""Jobs sent to a cluster: what travels, what comes back, and every refusal in one sentence."""

import importlib.util
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.identity import job_identity
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.orchestrator.run import shipment
from toprovar_batch.orchestrator.run.shipment import JOB_NAME, pack, requirements


def _fake_job_server():
    path = Path(__file__).parents[1] / "fake_job_server.py"
    spec = importlib.util.spec_from_file_location("fake_job_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FakeJobServer()


@pytest.fixture
def server():
    with _fake_job_server() as running:
        yield running


@pytest.fixture
def job_file(tmp_path):
    """A job whose prompts are two files behind a glob, in a folder of their own."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "b.txt").write_text("two cats\n")
    (folder / "a.txt").write_text("a cat\nthree cats\n")
    path = folder / "cats.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "prompts": {"source": "*.txt"},
                "model": {"preset": "tiny"},
                "policy": "toprovar",
                "output": str(tmp_path / "out"),
                "image": {"h_div_w": [1.0, 0.5]},
            }
        )
    )
    return path


def call(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output


def test_a_job_is_sent_with_its_package_and_followed_to_its_end(server, job_file):
    output = call(
        "submit", job_file, "--address", server.address, "--retry-errors", "--set", "sampling.seed=7"
    )
    assert "sent as raysubmit_1" in output
    assert output.endswith("first\nlast\n")
    [request] = server.requests
    assert request["entrypoint"] == "python -m toprovar_batch submit job.yaml --retry-errors"
    assert request["metadata"] == {"toprovar_job": "cats"}
    [(name, content)] = server.packages.items()
    assert request["runtime_env"]["working_dir"] == f"gcs://{name}"
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        names = set(package.namelist())
        shipped = yaml.safe_load(package.read(JOB_NAME))
    assert {"toprovar_batch/__main__.py", "toprovar_batch/worker/actor.py", "prompts/000001.txt"} <= names
    assert not any("__pycache__" in name for name in names)
    assert (shipped["prompts"]["source"], shipped["sampling"]["seed"]) == ("prompts", 7)
    assert len(content) < 100 << 20  # what Ray takes


def test_the_job_that_arrives_makes_the_same_dataset(job_file, tmp_path):
    job = load_job(str(job_file))
    folder = tmp_path / "node"
    folder.mkdir()
    pack(job, folder)
    arrived = load_job(str(folder / JOB_NAME))
    assert job_identity(arrived, plan_job(arrived)) == job_identity(job, plan_job(job))
    assert (arrived.name, arrived.output) == (job.name, job.output)


def test_what_arrives_runs_from_its_folder_without_an_installed_package(job_file, tmp_path):
    folder = tmp_path / "node"
    folder.mkdir()
    pack(load_job(str(job_file)), folder)
    job_file.unlink()
    code = (
        "import importlib.metadata as m, sys, toprovar_batch\n"
        "from toprovar_batch.orchestrator.cli import main\n"
        "print(toprovar_batch.__file__, [d.version for d in m.distributions(path=[sys.path[0]])])\n"
        "main(['validate', 'job.yaml'])"
    )
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{folder}/toprovar_batch/__init__.py ['0.1.0']")
    assert "3 from" in done.stdout
    assert done.stdout.endswith("The job is valid.\n")


def test_a_detached_job_is_not_followed(server, job_file):
    output = call("submit", job_file, "--address", server.address, "--detach", "--no-install")
    assert f"toprovar-batch logs raysubmit_1 --address {server.address} --follow" in output
    assert "first" not in output
    assert "pip" not in server.requests[0]["runtime_env"]


def test_logs_and_stop(server, job_file):
    call("submit", job_file, "--address", server.address, "--detach")
    there = ("raysubmit_1", "--address", server.address)
    assert call("logs", *there) == "first\nlast\n"
    assert call("stop", *there) == "raysubmit_1 has ended already\n"
    server.ending["status"] = "RUNNING"
    assert call("stop", *there) == "raysubmit_1 is asked to stop\n"


def test_the_token_of_the_environment_is_sent(server, job_file):
    server.token = "0" * 64
    line = [sys.executable, "-m", "toprovar_batch", "submit", str(job_file), "--address", server.address]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}

    def sent(**more):
        done = subprocess.run(line, env=variables | more, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = sent(RAY_AUTH_TOKEN=server.token)
    assert (code, said.endswith("first\nlast\n")) == (0, True), said
    for given in ({}, {"RAY_AUTH_TOKEN": "1" * 64}):
        code, said = sent(**given)
        refused = f"Error: {server.address}: the Ray Jobs server refuses the token; set RAY_AUTH_TOKEN to its token, or "
        assert (code, said.startswith(refused), said.count("\n")) == (2, True, 1), said


def test_a_log_obeys_no_terminal_and_shows_no_secret(server, job_file):
    call("submit", job_file, "--address", server.address, "--detach")
    server.said = ["\x1b[2Jred\r\n50%\r100%\n\tat https://u:S3c", "r3t@host/f?sig=S3cr3t failed\u202e\nrest"]
    shown = "\\x1b[2Jred\n100%\n        at https://***@host/f?sig=*** failed\\u202e\nrest\n"
    there = ("raysubmit_1", "--address", server.address)
    assert call("logs", *there) == shown
    assert call("logs", *there, "--follow") == shown


@pytest.mark.parametrize(
    ("ending", "code", "sentence"),
    [
        ({"status": "FAILED", "driver_exit_code": 1}, 1, "raysubmit_1 failed; its log says why"),
        ({"status": "FAILED", "driver_exit_code": 2}, 2, ""),
        ({"status": "FAILED", "driver_exit_code": -9}, 137, ""),
        ({"status": "STOPPED", "driver_exit_code": None}, 143, ""),
        ({"status": "FAILED", "driver_exit_code": None, "message": "no\nroom"}, 1, "could not run: no room"),
        ({"status": "RUNNING"}, 1, "while it is RUNNING"),
    ],
)
def test_whoever_follows_a_job_leaves_with_its_exit_code(server, job_file, ending, code, sentence):
    server.ending |= ending
    assert sentence in call("submit", job_file, "--address", server.address, code=code)


def test_an_unknown_job_is_named(server):
    for command in (("logs",), ("logs", "--follow"), ("stop",)):
        output = call(*command, "nobody", "--address", server.address, code=2)
        assert output == f"Error: {server.address}: there is no job nobody\n"


def test_an_address_that_was_named_wins_over_the_environment(server, job_file, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    call("submit", job_file, "--address", server.address, "--detach")
    assert os.environ["RAY_ADDRESS"] == "http://127.0.0.1:9"


def test_refusals_are_one_sentence(server, job_file):
    output = call("submit", job_file, "--address", "http://127.0.0.1:9", code=2)
    assert output.startswith("Error: http://127.0.0.1:9: no Ray Jobs server answers; name the dashboard")
    assert "is no address of Ray Jobs" in call("stop", "x", "--address", "head:6379", code=2)
    assert "--detach goes with Ray Jobs only" in call("submit", job_file, "--detach", code=2)
    server.refusal = (500, "broken\n  no room")
    assert "status code 500: broken no room" in call("submit", job_file, "--address", server.address, code=2)
    server.ray_version = "1.8.0"
    assert "Ray version 1.8.0 is running" in call("submit", job_file, "--address", server.address, code=2)


def test_prompts_that_cannot_be_sent_are_refused_by_name(server, job_file, monkeypatch):
    there = ("--address", server.address)
    output = call("submit", job_file, *there, "--set", "prompts.source=-", code=2)
    assert "standard input is read on this machine only" in output
    monkeypatch.setattr(shipment, "_MOST_BYTES", 10)
    assert "more than the 0 MiB" in call("submit", job_file, *there, code=2)
    assert not server.requests
    call("submit", job_file, *there, "--detach", "--set", "prompts.source=s3://bucket/p.txt")


def test_a_node_installs_what_the_package_needs_besides_torch_and_ray(job_file):
    names = {line.split(">")[0] for line in requirements(load_job(str(job_file)))}
    assert {"pyarrow", "transformers", "fsspec[http]"} <= names
    assert not names & {"torch", "ray", "triton", "s3fs", "pytest", "ray[default]"}
    assert "s3fs" in {
        line.split(">")[0] for line in requirements(load_job(str(job_file), output="s3://bucket/x"))
    }


def test_any_other_address_is_that_of_a_cluster(job_file, monkeypatch):
    seen = []
    from toprovar_batch.orchestrator.commands import submit as command

    monkeypatch.setattr(command, "_submit", lambda job, *_: seen.append(job.runtime.ray_address))
    monkeypatch.setattr(command, "finish", lambda *_: None)
    call("submit", job_file, "--address", "head:6379")
    assert seen == ["head:6379"]
