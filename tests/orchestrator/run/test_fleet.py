"""How long a worker may be silent, and what its exceptions are told as. Ray itself stays out of it."""

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from toprovar_batch.orchestrator.run import fleet as fleet_module
from toprovar_batch.orchestrator.run.fleet import (
    Arriving,
    Dismissed,
    Fleet,
    HeadLost,
    Loaded,
    LoadFailed,
    Lost,
    Starving,
    Waiting,
    Worker,
    _sentence,
)
from toprovar_batch.worker.shard_events import Alive, AwaitingMemory, Committed, Fetching, Progress, Started
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.worker_errors import OutputRefusedError

NOW = 50_000.0  # seconds, on a clock that stands


@pytest.fixture
def silent_fleet(monkeypatch):
    """A fleet with one worker in a given phase that last answered some seconds ago."""
    monkeypatch.setattr(
        fleet_module, "time", SimpleNamespace(monotonic=lambda: NOW, sleep=lambda _seconds: None)
    )
    monkeypatch.setattr(fleet_module.ray, "wait", lambda sources, **_: ([], sources))
    monkeypatch.setattr(fleet_module.ray, "kill", lambda _actor: None)

    def make(phase, silent_s, *, may_grow=True):
        fleet = Fleet(
            SimpleNamespace,
            on_gpus=False,
            num_workers=1,
            cpus_per_worker=1,
            stall_timeout_s=100,
            load_timeout_s=1000,
            may_grow=may_grow,
        )
        fleet._head = SimpleNamespace(answers=lambda: True, why_lost=lambda: None)
        since = NOW - silent_s
        fleet.workers.append(
            Worker(None, "source", phase, open={3: ()}, last_sign=since, loading_since=since)
        )
        return fleet

    return make


@pytest.mark.parametrize(
    ("phase", "silent_s"), [("loading", 900), ("busy", 90), ("placing", 5000), ("idle", 5000)]
)
def test_patience_with_a_worker_depends_on_what_it_is_at(silent_fleet, phase, silent_s):
    fleet = silent_fleet(phase, silent_s)
    assert list(fleet.wait(0)) == []
    assert len(fleet.workers) == 1


def test_a_worker_that_does_not_finish_loading_is_replaced(silent_fleet):
    fleet = silent_fleet("loading", 1001)
    [event] = fleet.wait(0)
    assert isinstance(event, LoadFailed)
    assert event.reason == "it was not loaded after 1000 seconds"
    assert fleet.workers == []


def test_bytes_that_arrive_are_told_and_do_not_stretch_the_time_to_load(silent_fleet, monkeypatch):
    fleet = silent_fleet("loading", 900)
    [worker] = fleet.workers
    monkeypatch.setattr(fleet_module.ray, "wait", lambda sources, **_: (sources, []))
    monkeypatch.setattr(fleet_module.ray, "get", lambda event: event)
    arrived, description = Fetching(10, 40, 2.0), {"worker": "host:1"}
    worker.source = iter([arrived, description])
    assert list(fleet.wait(0)) == [Arriving(worker, arrived)]
    assert (worker.last_sign, worker.loading_since) == (NOW, NOW - 900)
    assert list(fleet.wait(0)) == [Loaded(worker, description)]
    assert (worker.phase, worker.name) == ("idle", "host:1")


def test_a_full_gpu_that_a_worker_waits_for_is_told(silent_fleet, monkeypatch):
    fleet = silent_fleet("loading", 900)
    [worker] = fleet.workers
    monkeypatch.setattr(fleet_module.ray, "wait", lambda sources, **_: (sources, []))
    monkeypatch.setattr(fleet_module.ray, "get", lambda event: event)
    state = AwaitingMemory("the model does not fit", 4)
    worker.source = iter([state])
    assert list(fleet.wait(0)) == [Waiting(worker, state)]
    assert (worker.phase, worker.loading_since) == ("loading", NOW - 900)


@pytest.mark.parametrize(("phase", "left"), [("loading", 0), ("idle", 0), ("busy", 1)])
def test_workers_of_a_node_that_ray_drains_end_once_they_have_no_shard(
    silent_fleet, monkeypatch, phase, left
):
    monkeypatch.setattr(fleet_module, "_draining_nodes", lambda: {"spot": 0})
    fleet = silent_fleet(phase, 0)
    [worker] = fleet.workers
    worker.node, worker.may_go_on = "spot", True
    other = Worker(None, "another source", phase, node="stays", may_go_on=True)
    fleet.workers.append(other)
    assert fleet.leave_nodes() == [worker]
    assert (len(fleet.workers), fleet.ready_for_more()) == (1 + left, [other])
    assert fleet.leave_nodes() == []
    worker.phase = "idle"
    fleet.leave_nodes()
    assert fleet.workers == [other]


def test_a_head_that_does_not_answer_is_not_asked_and_costs_no_worker(silent_fleet, monkeypatch):
    def hang(*_):
        raise AssertionError("Ray would hold the run for a minute, and then end its process")

    fleet = silent_fleet("idle", 0, may_grow=False)
    fleet._num_workers, fleet._head.answers = None, lambda: False
    monkeypatch.setattr(fleet_module, "_draining_nodes", hang)
    monkeypatch.setattr(fleet_module.ray, "cluster_resources", hang)
    assert (fleet.leave_nodes(), fleet.room(), len(fleet.workers)) == ([], 1, 1)
    starving = silent_fleet("placing", 25, may_grow=False)
    starving._head.answers = lambda: False
    assert not starving.starving().for_good


def test_a_head_that_answers_again_tells_of_its_nodes(silent_fleet, monkeypatch):
    now = [NOW]
    monkeypatch.setattr(fleet_module.time, "monotonic", lambda: now[0])
    cpus = iter([2.0, 3.0])
    monkeypatch.setattr(fleet_module.ray, "cluster_resources", lambda: {"CPU": next(cpus)})
    fleet = silent_fleet("idle", 0)
    fleet._num_workers = None
    rooms = []
    for answers in (True, False, True):
        fleet._head.answers = lambda answers=answers: answers
        rooms.append(fleet.room())
        now[0] += 2
    assert rooms == [2, 2, 3]


def test_a_head_that_is_lost_is_told(silent_fleet):
    fleet = silent_fleet("busy", 0)
    fleet._head.why_lost = lambda: "the head has gone"
    assert list(fleet.wait(0)) == [HeadLost("the head has gone")]


def test_workers_that_are_dismissed_are_told_of_once_even_where_none_is_left(silent_fleet):
    fleet = silent_fleet("idle", 0)
    [worker] = fleet.workers
    fleet.dismiss(worker)
    assert list(fleet.wait(0)) == [Dismissed(worker)]
    assert list(fleet.wait(0)) == []


def test_a_node_that_is_left_tells_of_its_idle_workers(silent_fleet, monkeypatch):
    monkeypatch.setattr(fleet_module, "_draining_nodes", lambda: {"spot": 0})
    fleet = silent_fleet("idle", 0)
    [worker] = fleet.workers
    worker.node = "spot"
    fleet.leave_nodes()
    assert list(fleet.wait(0)) == [Dismissed(worker)]


def test_a_worker_that_is_dismissed_while_others_are_heard_is_not_lost_as_well(silent_fleet, monkeypatch):
    def dies(_source):
        raise fleet_module.RayError("its process died")

    monkeypatch.setattr(fleet_module.ray, "wait", lambda sources, **_: (sources, []))
    monkeypatch.setattr(fleet_module.ray, "get", dies)
    fleet = silent_fleet("busy", 0)
    [first] = fleet.workers
    second = Worker(None, iter([None]), "busy", open={3: ()})
    first.source = iter([None])
    fleet.workers.append(second)
    events = fleet.wait(0)
    lost = next(events)
    loser = second if lost.worker is first else first
    fleet.dismiss(loser)
    assert list(events) == []
    assert list(fleet.wait(0)) == [Dismissed(loser)]


def test_ray_tells_which_nodes_it_drains(ray_cluster):
    assert list(fleet_module._draining_nodes()) == []


def test_a_worker_that_is_silent_over_its_shard_is_replaced(silent_fleet):
    [event] = silent_fleet("busy", 101).wait(0)
    assert isinstance(event, Lost)
    assert (event.shard_id, event.reason) == (3, "it gave no sign of life for 100 seconds")


def test_a_driver_that_was_stopped_does_not_take_its_workers_for_silent(silent_fleet, monkeypatch):
    fleet = silent_fleet("busy", 50)
    monkeypatch.setattr(
        fleet_module, "time", SimpleNamespace(monotonic=lambda: NOW + 5000)
    )  # a lid was closed
    assert list(fleet.wait(0)) == []
    monkeypatch.setattr(fleet_module, "time", SimpleNamespace(monotonic=lambda: NOW + 5009))
    assert list(fleet.wait(0)) == []
    for listened in range(5010, 5111, 9):
        monkeypatch.setattr(fleet_module, "time", SimpleNamespace(monotonic=lambda now=NOW + listened: now))
        events = list(fleet.wait(0))
    assert isinstance(events[0], Lost)  # from then on silence counts as ever


def test_a_worker_whose_event_waits_to_be_read_is_not_silent(silent_fleet, monkeypatch):
    fleet = silent_fleet("busy", 101)
    monkeypatch.setattr(
        fleet_module.ray, "wait", lambda sources, timeout, **_: ([], sources) if timeout else (sources, [])
    )
    assert list(fleet.wait(0.5)) == []


def test_a_sign_of_life_changes_nothing_in_flight(silent_fleet, monkeypatch):
    fleet = silent_fleet("busy", 101)
    [worker] = fleet.workers
    worker.open, worker.source = {3: ("a",)}, iter([[(3, Alive())]])
    monkeypatch.setattr(fleet_module.ray, "wait", lambda sources, **_: (sources, []))
    monkeypatch.setattr(fleet_module.ray, "get", lambda event: event)
    list(fleet.wait(0))
    assert (worker.open, worker.last_sign) == ({3: ("a",)}, NOW)


def test_a_death_names_the_samples_of_every_batch_in_the_engine(silent_fleet, monkeypatch):
    fleet = silent_fleet("busy", 0)
    [worker] = fleet.workers
    monkeypatch.setattr(fleet_module.ray, "wait", lambda sources, **_: (sources, []))
    monkeypatch.setattr(fleet_module.ray, "get", lambda event: event)
    events = Started(("a", "b")), Started(("c", "d")), Progress(("a", "b"), 2), Started(("e",))
    worker.source = iter([[(3, event)] for event in events])
    seen = []
    for _ in events:
        list(fleet.wait(0))
        seen.append(worker.open[3])
    assert seen == [("a", "b"), ("a", "b", "c", "d"), ("c", "d"), ("c", "d", "e")]
    [lost] = fleet._bury(worker, "its process died")
    assert lost.in_flight == ("c", "d", "e")


@pytest.mark.parametrize(
    ("may_grow", "total", "for_good"),
    [(False, {}, True), (False, {"CPU": 4.0}, False), (True, {}, False)],
)
def test_a_node_is_lost_for_good_where_none_can_join(silent_fleet, monkeypatch, may_grow, total, for_good):
    monkeypatch.setattr(fleet_module.ray, "cluster_resources", lambda: total)
    starving = silent_fleet("placing", 25, may_grow=may_grow).starving()
    assert starving == Starving("node with 1 free CPU for each worker", 25, for_good)
    assert silent_fleet("placing", 5).starving() is None
    assert silent_fleet("loading", 25).starving() is None


@pytest.fixture
def crossing_fleet(silent_fleet, monkeypatch):
    """A fleet whose worker answers with what a test puts into its streams."""
    fleet = silent_fleet("idle", 0)
    [worker] = fleet.workers
    calls = []

    class Stream:
        def options(self, **_):
            return self

        def remote(self, tasks):
            calls.append([task.shard_id for task in tasks])
            return iter([[told] for told in streams.pop(0)])

    streams = []
    worker.actor, worker.open, worker.source = SimpleNamespace(stream=Stream()), {}, None
    monkeypatch.setattr(fleet_module.ray, "wait", lambda sources, **_: (sources, []))
    monkeypatch.setattr(fleet_module.ray, "get", lambda event: event)

    def start(shard_id, *events, attempt=1):
        streams.append(events)
        fleet.start_shards(worker, [SimpleNamespace(shard_id=shard_id, attempt=attempt)])

    def start_some(shard_ids, *events):
        streams.append(events)
        fleet.start_shards(worker, [SimpleNamespace(shard_id=shard_id, attempt=1) for shard_id in shard_ids])

    return SimpleNamespace(
        fleet=fleet, worker=worker, calls=calls, streams=streams, start=start, start_some=start_some
    )


def committed(shard_id):
    return shard_id, Committed(ShardStats(rows=1, ok=1), 1, {})


def test_the_shard_after_is_taken_when_the_last_batch_has_begun_and_not_before(crossing_fleet):
    fleet, worker = crossing_fleet.fleet, crossing_fleet.worker
    crossing_fleet.start(3, (3, Started(("a",))), (3, Started(("b",), last=True)))
    list(fleet.wait(0))
    assert fleet.ready_for_more() == []
    list(fleet.wait(0))
    assert fleet.ready_for_more() == [worker]
    crossing_fleet.start(4, (4, Started(("c",), last=True)), (3, Progress(("a", "b"), 2)), committed(3))
    assert fleet.ready_for_more() == []
    list(fleet.wait(0))  # the end of the first stream
    list(fleet.wait(0))
    assert worker.open == {3: ("a", "b"), 4: ("c",)}
    assert fleet.ready_for_more() == [worker]
    list(fleet.wait(0))
    list(fleet.wait(0))
    assert (worker.open, worker.phase) == ({4: ("c",)}, "busy")
    crossing_fleet.streams.append([(4, Progress(("c",), 1)), committed(4)])
    for _ in range(3):
        list(fleet.wait(0))
    assert (crossing_fleet.calls, worker.open, worker.phase) == ([[3], [4], []], {}, "idle")


def test_several_shards_go_in_one_call_and_nothing_follows_before_the_last_has_begun(crossing_fleet):
    fleet, worker = crossing_fleet.fleet, crossing_fleet.worker
    events = (3, Started(("a",), last=True)), (4, Started(("b",), last=True)), (5, Started(("c",), last=True))
    crossing_fleet.start_some([3, 4, 5], *events)
    ready = []
    for _ in events:
        list(fleet.wait(0))
        ready.append(bool(fleet.ready_for_more()))
    assert (crossing_fleet.calls, ready) == ([[3, 4, 5]], [False, False, True])
    assert worker.open == {3: ("a",), 4: ("b",), 5: ("c",)}


def test_events_that_are_told_together_count_one_after_the_other(crossing_fleet):
    fleet, worker = crossing_fleet.fleet, crossing_fleet.worker
    crossing_fleet.start_some([3, 4])
    worker.source = iter(
        [[(3, Started(("a",))), (3, Progress(("a",), 1)), committed(3), (4, Started(("b",)))]]
    )
    events = list(fleet.wait(0))
    assert [event.shard_id for event in events] == [3, 3, 3, 4]
    assert worker.open == {4: ("b",)}


@pytest.mark.parametrize(
    ("told", "guilty", "unbegun"),
    [
        ([], [3], [4, 5]),
        ([(3, Started(("a",)))], [3], [4, 5]),
        ([(3, Progress(("a",), 1))], [3], [4, 5]),
        ([(3, Started(("a",))), (4, Started(("b",))), (3, Progress(("a",), 1))], [4], [5]),
    ],
)
def test_a_death_is_not_held_against_shards_that_the_worker_had_not_come_to(
    crossing_fleet, told, guilty, unbegun
):
    crossing_fleet.start_some([3, 4, 5], *told)
    for _ in told:
        list(crossing_fleet.fleet.wait(0))
    lost = list(crossing_fleet.fleet._bury(crossing_fleet.worker, "its process died"))
    assert [each.shard_id for each in lost if not each.innocent] == guilty
    assert [each.shard_id for each in lost if not each.begun and each.innocent] == unbegun


def test_nothing_follows_a_shard_that_is_tried_again(crossing_fleet):
    crossing_fleet.start(3, (3, Started(("a",), last=True)), attempt=2)
    list(crossing_fleet.fleet.wait(0))
    assert crossing_fleet.fleet.ready_for_more() == []


def test_a_death_names_the_samples_of_every_shard_in_the_engine(crossing_fleet):
    worker = crossing_fleet.worker
    worker.phase, worker.open = "busy", {3: (), 4: ("a",), 5: ("b", "c")}
    events = list(crossing_fleet.fleet._bury(worker, "its process died"))
    assert [(lost.shard_id, lost.in_flight, lost.innocent) for lost in events] == [
        (3, (), True),  # on its way to the output
        (4, ("a",), False),
        (5, ("b", "c"), False),
    ]
    assert not any(lost.alone for lost in events)


def test_an_exception_is_held_against_its_own_shard_alone(crossing_fleet):
    worker = crossing_fleet.worker
    worker.phase, worker.open = "busy", {3: ("a",), 4: ("b",)}
    cause = OutputRefusedError("403")
    cause.shard_id = 4
    events = list(crossing_fleet.fleet._bury(worker, "403", SimpleNamespace(cause=cause)))
    assert [(lost.shard_id, lost.innocent, lost.refused) for lost in events] == [
        (3, True, False),
        (4, False, True),
    ]


def test_a_worker_that_cannot_be_made_on_its_node_says_why():
    trace = "\x1b[36mray::GenerationWorker.__init__()\x1b[39m (pid=7)\n  ^^^\nModuleNotFoundError: No module named 'toprovar_batch'"
    cause = RayTaskError("GenerationWorker.__init__", trace, ModuleNotFoundError("toprovar_batch"))
    assert _sentence(ActorDiedError(cause)) == "ModuleNotFoundError: No module named 'toprovar_batch'"
