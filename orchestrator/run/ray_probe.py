"""What can be told about Ray without importing it: which cluster a job runs on, and whether that answers.

Ray itself asks for many minutes, and ends the process where it gives up.
"""

import os
import re
import socket
import time

from toprovar_batch.orchestrator.job.spec import RuntimeJobSpec
from toprovar_batch.worker.errors import JobSpecError
from toprovar_batch.worker.words import counted

ANSWER_S = 60.0  # a head that is busy or far away may take long
_REFUSALS_S = 5.0  # a port that nobody listens at is an answer, unless the head is just being started
AUTO = "auto"  # the cluster that runs on this machine
_LOCAL = "local"  # Ray's own word for none
_ADDRESS = re.compile(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d+)/?")
# How gRPC begins: the preface of HTTP/2 with empty settings, which a server answers with its own.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4  # type of a frame, its fourth byte


def cluster_address(runtime: RuntimeJobSpec) -> str | None:
    """Address of the cluster that a job must run on; None: this machine."""
    address = runtime.ray_address or os.environ.get("RAY_ADDRESS")
    return None if address in ("", _LOCAL) else address


def is_job_server(address: str) -> bool:
    """Whether an address is that of Ray Jobs, and not of a cluster's GCS or Ray Client."""
    return address.startswith(("http://", "https://"))


def refuse_address(address: str) -> None:
    """Refuse what no Ray cluster is joined by.

    Raises:
        JobSpecError: it is that of Ray Jobs, or none at all.
    """
    if is_job_server(address):
        raise JobSpecError(
            f"runtime.ray_address: {address} is of Ray Jobs; send the job there with submit --address {address}, or name the "
            "cluster's own address, such as head:6379"
        )
    if address != AUTO and "://" not in address and _ADDRESS.fullmatch(address) is None:
        raise JobSpecError(
            f"runtime.ray_address: {address} is no address; name host:port, ray://host:port or auto"
        )


def no_answer(address: str, reason: str) -> JobSpecError:
    """The error of a cluster that does not answer."""
    return JobSpecError(f"runtime.ray_address: no Ray cluster answers at {address}: {reason}")


def check_ray(runtime: RuntimeJobSpec, limit_s: float) -> list[str]:
    """Look for the Ray that a job runs on, without starting or joining it.

    Args:
        runtime: of the job.
        limit_s: most seconds to wait for an answer of a cluster.

    Returns:
        What a run would warn of.

    Raises:
        JobSpecError: no cluster answers at its address.
    """
    address = cluster_address(runtime)
    if not address:
        warning = core_warning(runtime)
        return [warning] if warning else []
    refuse_address(address)
    try:
        wait_for_ray(address, limit_s)
    except ConnectionError as error:
        raise no_answer(address, str(error)) from error
    return []


def core_warning(runtime: RuntimeJobSpec) -> str | None:
    """Say that a worker asks for more cores than this machine lets a process use; None where it does not."""
    cpus = len(os.sched_getaffinity(0))
    if runtime.cpus_per_worker <= cpus:
        return None
    have = counted(cpus, "core")
    return f"runtime.cpus_per_worker is {runtime.cpus_per_worker}, and this machine has {have}, which a worker gets alone"


def wait_for_ray(address: str, limit_s: float = ANSWER_S, refusals_s: float = _REFUSALS_S) -> None:
    """Wait until something that speaks Ray's protocol answers.

    Args:
        address: host:port or ray://host:port; "auto" is left to Ray.
        limit_s: most seconds to wait for an answer.
        refusals_s: most seconds to wait where the host is unknown or nobody listens.

    Raises:
        ConnectionError: there is none; says why.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None:
        return
    start = time.monotonic()
    while True:
        try:
            _ask(found[1], int(found[2]), start + limit_s - time.monotonic())
        except TimeoutError:
            reason, patience = f"nothing within {limit_s:g} seconds", limit_s
        except (OSError, OverflowError) as error:
            reason, patience = str(error), refusals_s
        else:
            return
        pause = min(1.0, refusals_s / 3)
        if time.monotonic() + pause - start >= patience:
            raise ConnectionError(reason)
        time.sleep(pause)


def answers(address: str, limit_s: float) -> bool:
    """Whether something that speaks Ray's protocol answers at an address; `limit_s` as of `wait_for_ray`."""
    try:
        wait_for_ray(address, limit_s, 0)
    except ConnectionError:
        return False
    return True


def _ask(host: str, port: int, timeout_s: float) -> None:
    """Open a connection and read the server's first frame.

    Raises:
        OSError: nobody listens, or who listens does not speak the protocol.
    """
    until = time.monotonic() + max(timeout_s, 0.1)
    with socket.create_connection((host, port), timeout=max(timeout_s, 0.1)) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("0", "", "false"):
            return  # what follows is encrypted
        connection.sendall(_PREFACE)
        answer = b""
        while len(answer) < 4:
            connection.settimeout(max(until - time.monotonic(), 0.1))
            more = connection.recv(4 - len(answer))
            if not more:
                raise OSError("the connection was closed")
            answer += more
    if answer[3] != _SETTINGS:
        raise OSError("another kind of server listens there")
