"""Whether a Ray cluster answers at an address; Ray itself asks for many minutes, and ends the process where it gives up."""

import os
import re
import socket
import time

ANSWER_S = 60.0  # a head that is busy or far away may take long
_REFUSALS_S = 5.0  # a port that nobody listens at is an answer, unless the head is just being started
_ADDRESS = re.compile(r"(?:ray://)?\[?([^/\]]+?)\]?:(\d+)/?")
# How gRPC begins: the preface of HTTP/2 with empty settings, which a server answers with its own.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4  # type of a frame, its fourth byte


def wait_for_ray(address: str, limit_s: float = ANSWER_S, refusals_s: float = _REFUSALS_S) -> None:
    """Wait until something that speaks Ray's protocol answers.

    Args:
        address: host:port or ray://host:port; others ("auto", "local") are left to Ray.
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
