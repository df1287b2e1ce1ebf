"""The head of a Ray cluster that is silent: for a moment, for long, for good."""

from types import SimpleNamespace

import pytest

from toprovar_batch.orchestrator.run import cluster_head as module
from toprovar_batch.orchestrator.run.cluster_head import ClusterHead

LIMIT = "RAY_gcs_rpc_server_reconnect_timeout_s"


@pytest.fixture
def head(monkeypatch):
    """A head with a clock, `now`, and with what it says from now on, `there`; `asked` has the patience of each question."""
    scene = SimpleNamespace(now=1000.0, there=True, asked=[])

    def answers(address, limit_s):
        assert address == "head:6379"
        scene.asked.append(limit_s)
        return scene.there

    monkeypatch.delenv(LIMIT, raising=False)
    monkeypatch.setattr(module, "answers", answers)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: scene.now))
    scene.head = ClusterHead(lambda: "head:6379")
    return scene


def watch(scene, seconds):
    """Ask twice a second, as a run does; what was said last."""
    for _ in range(2 * seconds):
        said = scene.head.why_lost()
        scene.now += 0.5
    return said


def test_a_head_is_asked_once_a_second(head):
    assert watch(head, 9) is None
    assert head.asked == [0.5] * 6
    assert head.head.answers()


def test_a_head_that_is_silent_is_lost_before_ray_ends_the_process(head):
    assert watch(head, 20) is None
    head.there = False
    assert watch(head, 40) is None
    assert not head.head.answers()
    assert watch(head, 10) == "the head of Ray at head:6379 has not answered for 48 seconds"
    assert head.asked[-1] == 5.0


def test_a_head_that_comes_back_is_not_lost(head):
    head.there = False
    assert watch(head, 40) is None
    head.there = True
    assert watch(head, 10) is None
    head.there = False
    assert watch(head, 40) is None


def test_a_head_that_is_slow_is_asked_with_more_patience_before_it_is_lost(head, monkeypatch):
    monkeypatch.setattr(module, "answers", lambda _address, limit_s: limit_s > 1)
    assert watch(head, 200) is None


@pytest.mark.parametrize(("limit", "lost_after"), [("600", 585), ("20", 10), ("nonsense", 45)])
def test_a_cluster_with_another_patience_of_ray_is_waited_for_accordingly(
    head, monkeypatch, limit, lost_after
):
    monkeypatch.setenv(LIMIT, limit)
    head.there = False
    assert watch(head, lost_after) is None
    assert watch(head, 4) is not None
