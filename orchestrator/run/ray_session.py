"""Ray, joined where there is a cluster and started quietly where there is none."""

import contextlib
import logging
import os
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private import node, ray_constants, services

from toprovar_batch.orchestrator.console import echo
from toprovar_batch.orchestrator.job.spec import RuntimeJobSpec
from toprovar_batch.worker.errors import JobSpecError

from .ray_probe import AUTO, cluster_address, core_warning, no_answer, refuse_address, wait_for_ray
from .stop_signals import undisturbed_start

_OBJECT_STORE_BYTES = 256 << 20  # events and prompts only: images never pass through it

_REFUSED_TOKEN: Any = getattr(ray.exceptions, "AuthenticationError", ())  # earlier versions have no tokens
# A socket's path has at most 107 bytes, of which Ray adds 64: the session, a time and a process.
_LONGEST_FOLDER = 43
# What serves the dashboard, sees a cluster grow, and prints workers' output at the driver: none is there for one run.
_FOR_OTHERS = ("start_api_server", "start_monitor", "start_log_monitor")
_SHORT_FOLDER = "/tmp/ray"  # noqa: S108 (Ray's own default, readable as it makes it)

REFUSAL_MEND = "set RAY_AUTH_TOKEN to its token, or RAY_AUTH_MODE=token to send that of ~/.ray/auth_token"
"""What mends a token that a cluster refuses."""
_TOKENS = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


@contextlib.contextmanager
def ray_session(runtime: RuntimeJobSpec) -> Iterator[None]:
    """Give a connection to Ray for the length of the block.

    The cluster is that of `runtime.ray_address`, else of RAY_ADDRESS (which `ray job submit` sets), else one on
    this machine that ends with the block. A connection that exists already is used and left alone.

    Args:
        runtime: address, workers and device.

    Raises:
        JobSpecError: no cluster answers at the address.
    """
    # Ray prints the news of its nodes to stdout whatever one asks of it; what matters of them we say ourselves.
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        if ray.is_initialized():
            yield
            return
        logging.getLogger("ray").setLevel(logging.ERROR)
        address = cluster_address(runtime)
        settings = {} if address else _local_settings(runtime)
        try:
            _start(settings, address)
            yield
        finally:
            ray.shutdown()


def is_joined() -> bool:
    """Whether this process has a connection to Ray."""
    return bool(ray.is_initialized())


def uses_gpus(runtime: RuntimeJobSpec) -> bool:
    """Decide between GPU and CPU workers, once Ray is there.

    Raises:
        JobSpecError: the job wants GPUs and the local machine has none. (A cluster may still grow some.)
    """
    num_gpus = ray.cluster_resources().get("GPU", 0)
    if runtime.device == "cuda" and not num_gpus and not cluster_address(runtime):
        raise JobSpecError(
            "runtime.device: cuda is asked for, but Ray finds no GPU on this machine; use auto or cpu"
        )
    return runtime.device == "cuda" or (runtime.device == "auto" and num_gpus > 0)


def refuse_dead_cluster(runtime: RuntimeJobSpec) -> None:
    """Ask the cluster of a job, where it has one, whether it is there; joins nothing.

    Raises:
        JobSpecError: no cluster answers at the address.
    """
    address = cluster_address(runtime)
    if not address or ray.is_initialized():
        return
    refuse_address(address)
    try:
        wait_for_ray(address)
    except ConnectionError as error:
        raise no_answer(address, str(error)) from error


def _start(settings: Mapping[str, Any], address: str | None) -> None:
    try:
        if address:
            refuse_address(address)
            settings = {**settings, "address": _reachable(address)}
        with undisturbed_start(), contextlib.nullcontext() if address else _for_one_run():
            ray.init(**settings, log_to_driver=False, logging_level=logging.ERROR)
    except _REFUSED_TOKEN as error:
        raise JobSpecError(
            f"runtime.ray_address: the Ray cluster at {address or 'this machine'} refuses the token; {REFUSAL_MEND}"
        ) from error
    except (ConnectionError, ValueError) as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        if address is None:
            raise _cannot_start(reason) from error
        if reason.startswith(
            "Failed to connect to Ray cluster"
        ):  # although something speaks its protocol there
            reason += f"; if it asks for a token, {REFUSAL_MEND}"
        raise no_answer(address, reason) from error
    except OSError as error:
        if address is not None:
            raise
        raise _cannot_start(str(error).split("\n", maxsplit=1)[0]) from error


def _reachable(address: str) -> str:
    """Wait until a cluster answers; gives its address, which "auto" leaves to the machine.

    Raises:
        ConnectionError: none answers.
    """
    # Ray asks 20 times, for 40 seconds each where nobody answers, and hears of no signal meanwhile. Once is enough for
    # one that has just answered; "auto" may name one that is gone.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    send_token(found_here=address == AUTO)
    found: str | None = services.canonicalize_bootstrap_address(address) if address == AUTO else address
    if found is None:
        raise ConnectionError("none runs on this machine")
    wait_for_ray(found)
    return found


def send_token(*, found_here: bool = False) -> None:
    """Let Ray send a token that the environment names; by itself it sends one only where RAY_AUTH_MODE is "token".

    The token in the home folder goes to no address that somebody names, unless that variable says so: it is the key to
    this machine's own clusters.

    Args:
        found_here: the cluster was found on this machine, which may have that one, too.
    """
    if not (found_here or os.environ.keys() & _TOKENS):
        return
    with contextlib.suppress(ImportError):  # earlier versions of Ray have no tokens
        from ray._private.authentication import authentication_token_setup as setup  # noqa: PLC0415

        enable = getattr(setup, "maybe_enable_token_auth_if_token_available", None)
        if enable is not None:
            enable(warn_if_disabled=False)


@contextlib.contextmanager
def _for_one_run() -> Iterator[None]:
    """Let a Ray that starts in the block be small and quick, and listen on loopback."""
    with _loopback_alone(), _without(*_FOR_OTHERS):
        yield


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Let a Ray that starts in the block leave out processes, named by the methods of its node that start them.

    `ray.init` has a switch for none of them, and waits for the first: a second or two.
    """
    former = {name: start for name, start in vars(node.Node).items() if name in names}
    for name in former:
        setattr(node.Node, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, start in former.items():
            setattr(node.Node, name, start)


@contextlib.contextmanager
def _loopback_alone() -> Iterator[None]:
    """Let a Ray that starts in the block listen on loopback; by default it listens on all interfaces.

    It does so where it takes the machine for one that is in no cluster, and turns a loopback address that it is given
    into that of an interface. Its variable for that is read when it is imported, for runs on clusters as well.
    """
    name = "ENABLE_RAY_CLUSTER"
    before = getattr(ray_constants, name, None)
    if (
        before is None or "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" in os.environ
    ):  # another version; the user's choice
        yield
        return
    setattr(ray_constants, name, False)
    try:
        yield
    finally:
        setattr(ray_constants, name, before)


def _cannot_start(reason: str) -> JobSpecError:
    return JobSpecError(
        f"Ray cannot start on this machine: {reason}; RAY_TMPDIR may name another folder for its files"
    )


def _local_settings(runtime: RuntimeJobSpec) -> dict[str, Any]:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns about its old default
    # Ray's node looks for its object store before that listens, and then waits this long; by default a second.
    os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "50")
    os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "200")
    # By default a process for every core of the machine starts at once, and stands in the way of the few that are used.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    if not _can_keep_a_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    cpus = len(os.sched_getaffinity(0))
    if warning := core_warning(runtime):
        echo(f"Warning: {warning}", err=True)
    settings: dict[str, Any] = {
        "address": "local",  # a bare init may join somebody's cluster
        "num_cpus": max(cpus, (runtime.num_workers or 1) * runtime.cpus_per_worker),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    if len(os.fsencode(_temporary_folder())) > _LONGEST_FOLDER:
        settings["_temp_dir"] = _SHORT_FOLDER
    return settings | ({"num_gpus": 0} if runtime.device == "cpu" else {})


def _temporary_folder() -> str:
    """Where Ray keeps its sockets, if nobody tells it otherwise."""
    return os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()


def _can_keep_a_token() -> bool:
    """Whether Ray has a token, or can write one into the home folder, which a container's user may not have."""
    if os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"}:
        return True
    try:
        home = Path.home()
    except RuntimeError:
        return False
    if (home / ".ray/auth_token").is_file():
        return True
    folder = home / ".ray"
    return os.access(folder if folder.is_dir() else home, os.W_OK | os.X_OK)
