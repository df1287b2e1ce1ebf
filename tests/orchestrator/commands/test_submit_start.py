"""How a run of a machine's own Ray begins: beside the imports, once, and unseen."""

import pytest
import ray

from toprovar_batch.orchestrator.commands import submit as command
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.run import submission
from toprovar_batch.orchestrator.run.ray_session import ray_session
from toprovar_batch.worker.errors import RunFailedError


@pytest.mark.parametrize(
    ("output", "address", "begins"),
    [
        ("new", None, True),
        ("old", None, False),
        ("s3://bucket/new", None, False),
        ("new", "head:6379", False),
        ("new", "local", True),
    ],
)
def test_ray_starts_beside_the_imports_only_where_it_is_sure_to_be_needed(
    tmp_path, monkeypatch, output, address, begins
):
    """Elsewhere the output may be finished already, or Ray is there."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "old").mkdir()
    overrides = [f"runtime.ray_address={address}"] if address else []
    (tmp_path / "job.yaml").write_text("prompts: {source: p.txt}\noutput: x\nmodel: {random_weights: true}\n")
    where = output if "://" in output else str(tmp_path / output)
    job = load_job(str(tmp_path / "job.yaml"), overrides, output=where)
    assert command._begins_here(job) is begins


def test_ray_that_runs_beside_the_imports_is_started_once_and_hides_no_summary(tmp_path, monkeypatch, capsys):
    events = []
    monkeypatch.setattr(ray, "is_initialized", lambda: "start" in events)
    monkeypatch.setattr(ray, "init", lambda **_: events.append("start"))
    monkeypatch.setattr(ray, "shutdown", lambda: events.append("end"))
    monkeypatch.setattr(submission, "submit_job", _run_that_fails(events))
    monkeypatch.setattr(command, "show", lambda summary, _go_on: print(summary))
    (tmp_path / "prompts.txt").write_text("a ball\n")
    (tmp_path / "job.yaml").write_text(
        f"prompts: {{source: prompts.txt}}\noutput: {tmp_path / 'out'}\nmodel: {{preset: tiny}}\n"
    )
    with pytest.raises(RunFailedError):
        command.submit_command.callback(str(tmp_path / "job.yaml"), None, (), False, None, False, False)
    assert events == ["start", "run", "end"]
    assert capsys.readouterr().out == "what it made\n"


def _run_that_fails(events):
    def submit_job(job, *, retry_errors, on_failure):
        with ray_session(job.runtime):
            events.append("run")
        on_failure("what it made")
        raise RunFailedError("no worker is left")

    return submit_job
