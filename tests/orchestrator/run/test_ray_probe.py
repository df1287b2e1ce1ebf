"""An address where no Ray answers is told soon."""

import socket
import threading
from contextlib import suppress

import pytest

from toprovar_batch.orchestrator.job.spec import RuntimeJobSpec
from toprovar_batch.orchestrator.run.ray_probe import answers, wait_for_ray
from toprovar_batch.orchestrator.run.ray_session import ray_session
from toprovar_batch.worker.errors import JobSpecError


@pytest.fixture
def serve():
    """Gives the address of a server that answers every connection with the same bytes, and keeps it open."""
    listening, connections, threads = [], [], []

    def start(answer):
        server = socket.create_server(("127.0.0.1", 0))
        listening.append(server)

        def loop():
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:
                    return
                connections.append(connection)
                with suppress(OSError):  # who has seen enough of the answer is gone
                    connection.sendall(answer or b"")

        threads.append(threading.Thread(target=loop, daemon=True))
        threads[-1].start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield start
    for server in listening:
        server.shutdown(socket.SHUT_RDWR)  # ends its thread's wait, which closing does not
    for thread in threads:
        thread.join()
    for each in (*connections, *listening):
        each.close()


def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("form", ["{}", "ray://{}"])
def test_a_server_that_speaks_the_protocol_is_enough(serve, form):
    wait_for_ray(form.format(serve(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))), 30, 0)


def test_a_server_that_says_nothing_is_told_after_the_limit(serve):
    with pytest.raises(ConnectionError, match=r"^nothing within 0\.2 seconds$"):
        wait_for_ray(serve(None), 0.2, 0)


def test_another_server_and_a_port_without_any_are_told(serve):
    with pytest.raises(ConnectionError, match="another kind of server"):
        wait_for_ray(serve(b"HTTP/1.1 400 Bad Request\r\n\r\n"), 30, 0)
    with pytest.raises(ConnectionError, match="refused"):
        wait_for_ray(closed_port(), 30, 0)


def test_whether_a_head_answers_is_told_without_an_error(serve):
    assert answers(serve(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])), 30)
    assert not answers(serve(None), 0.2)
    assert not answers(closed_port(), 30)


@pytest.mark.parametrize("address", ["auto", "local"])
def test_addresses_that_are_none_are_left_to_ray(address):
    wait_for_ray(address, 0, 0)


def test_the_real_ray_answers(ray_cluster):
    import ray

    wait_for_ray(ray.get_runtime_context().gcs_address, 30, 0)


def test_a_dead_cluster_is_one_sentence(monkeypatch):
    address = closed_port()
    monkeypatch.setattr("toprovar_batch.orchestrator.run.ray_session.ray.is_initialized", lambda: False)
    monkeypatch.setattr("toprovar_batch.orchestrator.run.ray_session.ray.shutdown", lambda: None)
    monkeypatch.setattr(
        "toprovar_batch.orchestrator.run.ray_session.wait_for_ray", lambda at: wait_for_ray(at, 30, 0)
    )
    with (
        pytest.raises(
            JobSpecError, match=rf"^runtime\.ray_address: no Ray cluster answers at {address}: .*refused"
        ),
        ray_session(RuntimeJobSpec(ray_address=address)),
    ):
        pass
