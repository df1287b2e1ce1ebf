"""Ray of one's own on machines as they are: long temporary folders, homes that cannot be written, few cores."""

import os
import subprocess
import sys

import pytest
from ray._private import ray_constants

from toprovar_batch.orchestrator.job.spec import RuntimeJobSpec
from toprovar_batch.orchestrator.run import ray_session
from toprovar_batch.worker.errors import JobSpecError


@pytest.fixture
def start(monkeypatch):
    """Starts a session with a stand-in for `ray.init`; gives its arguments."""
    monkeypatch.setattr("toprovar_batch.orchestrator.run.ray_session.ray.is_initialized", lambda: False)
    monkeypatch.setattr("toprovar_batch.orchestrator.run.ray_session.ray.shutdown", lambda: None)
    monkeypatch.setattr("toprovar_batch.orchestrator.run.ray_session.wait_for_ray", lambda _: None)
    monkeypatch.setattr("toprovar_batch.orchestrator.run.ray_session.send_token", lambda **_: None)
    for name in (
        "RAY_ADDRESS",
        "RAY_TMPDIR",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_AUTH_MODE",
        "RAY_gcs_server_port_wait_time_s",
    ):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards, whoever sets it
        monkeypatch.delenv(name)

    def begin(error=None, **runtime):
        given = {}

        def init(**settings):
            given.update(settings, in_clusters=ray_constants.ENABLE_RAY_CLUSTER)
            if error is not None:
                raise error

        monkeypatch.setattr("toprovar_batch.orchestrator.run.ray_session.ray.init", init)
        with ray_session.ray_session(RuntimeJobSpec(device="cpu", **runtime)):
            return given

    return begin


@pytest.mark.parametrize(("length", "short"), [(43, False), (44, True), (90, True)])
@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_not_used(start, monkeypatch, variable, length, short):
    folder = "/" + "x" * (length - 1)
    monkeypatch.setattr("tempfile.tempdir", folder if variable == "TMPDIR" else "/tmp")
    if variable == "RAY_TMPDIR":
        monkeypatch.setenv(variable, folder)
    assert (start().get("_temp_dir") == "/tmp/ray") is short


def test_where_the_home_cannot_be_written_the_token_lives_in_the_environment(start, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    start()
    assert "RAY_AUTH_TOKEN" not in os.environ
    monkeypatch.setenv("HOME", "/proc/none")
    start()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    token = os.environ["RAY_AUTH_TOKEN"]
    start()
    assert os.environ["RAY_AUTH_TOKEN"] == token


def test_more_cores_per_worker_than_there_are_is_told(start, capsys):
    start(cpus_per_worker=len(os.sched_getaffinity(0)))
    assert capsys.readouterr().err == ""
    start(cpus_per_worker=10_000)
    err = capsys.readouterr().err
    assert err.startswith("Warning: runtime.cpus_per_worker is 10000, and this machine has ")
    assert err.count("\n") == 1


def test_a_refused_token_is_told_as_such(start):
    error = ray_session.ray.exceptions.AuthenticationError("InvalidAuthToken")
    with pytest.raises(JobSpecError, match="the Ray cluster at head:1 refuses the token; set RAY_AUTH_TOKEN"):
        start(error, ray_address="head:1")
    # So it says of a cluster that asks for a token and is given none.
    error = ConnectionError("Failed to connect to Ray cluster at head:1")
    with pytest.raises(JobSpecError, match="at head:1; if it asks for a token, set RAY_AUTH_TOKEN"):
        start(error, ray_address="head:1")


@pytest.mark.parametrize(
    ("variables", "found_here", "is_sent"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"RAY_AUTH_TOKEN": "0" * 64}, False, True),
        ({"RAY_AUTH_TOKEN_PATH": "/some/file"}, False, True),
    ],
)
def test_the_token_in_the_home_folder_goes_to_clusters_of_this_machine_alone(
    monkeypatch, variables, found_here, is_sent
):
    asked = []
    setup = (
        "ray._private.authentication.authentication_token_setup.maybe_enable_token_auth_if_token_available"
    )
    monkeypatch.setattr(setup, lambda **options: asked.append(options))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ray_session.send_token(found_here=found_here)
    assert bool(asked) is is_sent


@pytest.mark.parametrize(
    "error", [OSError("no room\nmore"), ValueError("no room\nmore"), ConnectionError("no room")]
)
def test_a_ray_that_cannot_start_is_one_sentence(start, error):
    with pytest.raises(JobSpecError, match=r"^Ray cannot start on this machine: no room; RAY_TMPDIR"):
        start(error)


def test_the_cluster_that_auto_means_must_answer_as_any_other(start, monkeypatch):
    """Ray remembers its last cluster in a file, which stays when that is killed."""
    asked = []
    monkeypatch.setattr(ray_session.services, "find_gcs_addresses", set)
    monkeypatch.setattr(ray_session.services, "find_bootstrap_address", lambda _: "127.0.0.1:1")
    monkeypatch.setattr("toprovar_batch.orchestrator.run.ray_session.wait_for_ray", asked.append)
    assert start(ray_address="auto")["address"] == asked[0]
    assert asked[0].endswith(":1")
    monkeypatch.setattr(ray_session.services, "find_bootstrap_address", lambda _: None)
    with pytest.raises(JobSpecError, match="no Ray cluster answers at auto: Could not find any running Ray"):
        start(ray_address="auto")


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "runtime.ray_address"])
def test_the_address_local_is_a_ray_of_ones_own(start, monkeypatch, name):
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "local" if name == "RAY_ADDRESS" else "head:6379")
    given = start() if name == "RAY_ADDRESS" else start(ray_address="local")
    assert given["address"] == "local"
    assert given["include_dashboard"] is False
    assert given["in_clusters"] is False


def test_a_cluster_that_dies_while_it_is_joined_is_asked_once(start, monkeypatch):
    monkeypatch.delenv("RAY_gcs_server_port_wait_time_s", raising=False)
    start()
    assert "RAY_gcs_server_port_wait_time_s" not in os.environ
    start(ray_address="head:6379")
    assert os.environ.get("RAY_gcs_server_port_wait_time_s") == "1"  # noqa: SIM112 - as Ray has it


LISTENERS = """
import os, sys
from pathlib import Path
import ray
from toprovar_batch.orchestrator.job.spec import RuntimeJobSpec
from toprovar_batch.orchestrator.run.ray_session import ray_session

def family(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid}.union(*(family(int(child)) for child in children))

def sockets(pid):
    found = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(os.readlink(link))
        except FileNotFoundError:  # closed by now
            continue
    return found

def runs(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(bytes(1))
    except FileNotFoundError:  # ended by now
        return []

with ray_session(RuntimeJobSpec(device="cpu", num_workers=1)):
    for pid in family(os.getpid()):
        print("runs", *(Path(os.fsdecode(word)).name for word in runs(pid)[:3]), file=sys.__stdout__)
    assert ray.get(ray.remote(num_cpus=1)(lambda: 5).remote()) == 5
    ours = set().union(*(sockets(pid) for pid in family(os.getpid())))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in ours:
                print("listens", words[1].split(":")[0], file=sys.__stdout__)
"""


@pytest.mark.slow
def test_a_ray_of_ones_own_listens_on_loopback_alone_and_serves_nobody_else(tmp_path):
    script = tmp_path / "listeners.py"
    script.write_text(LISTENERS)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    running = " ".join(line for line in done.stdout.splitlines() if line.startswith("runs"))
    assert "gcs_server" in running
    assert not {"dashboard.py", "monitor.py", "log_monitor.py"} & set(running.split())
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("listens")]
    assert len(found) >= 4  # GCS, node, driver, worker
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert set(found) <= loopback


def test_only_a_ray_of_ones_own_is_kept_on_loopback(start, monkeypatch):
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    monkeypatch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    assert start()["in_clusters"] is False
    assert start(ray_address="10.0.0.1:6379")["in_clusters"] is True
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1")
    assert start()["in_clusters"] is True
    assert ray_constants.ENABLE_RAY_CLUSTER is True
