import signal
from types import SimpleNamespace

import pytest

from toprovar_batch.orchestrator.run.attempts import Attempts
from toprovar_batch.orchestrator.run.dispatch import Dispatcher
from toprovar_batch.orchestrator.run.engine_watch import EngineWatch
from toprovar_batch.orchestrator.run.fleet_events import (
    HeadLost,
    Loaded,
    LoadFailed,
    Lost,
    Reported,
    Starving,
    Waiting,
    Worker,
)
from toprovar_batch.orchestrator.run.ledger import ShardLedger
from toprovar_batch.orchestrator.run.load_guard import LoadGuard
from toprovar_batch.orchestrator.run.observer import Observer
from toprovar_batch.orchestrator.run.outcome import Outcome
from toprovar_batch.worker.errors import CheckpointError, OutputFolderError, RunFailedError
from toprovar_batch.worker.shard_events import AwaitingMemory, Committed, Progress, Proven, Refused, Started
from toprovar_batch.worker.shard_stats import ShardStats


def shard_of(worker):
    [shard_id] = worker.open
    return shard_id


class ScriptedFleet:
    """Workers that load and finish a shard at once, unless `script` says otherwise.

    `script` maps the number of a `wait` call to something to do in it, or to events to give instead.
    """

    def __init__(self, room=1, script=None):
        self.workers = []
        self.started, self.given = [], []
        self.most_workers = 0
        self.missing = None
        self.leaving = []  # workers whose node Ray begins to drain
        self.engine = {}
        self._room = room
        self._script = script or {}
        self._waits, self._loaded = 0, 0

    def room(self):
        return self._room

    def starving(self):
        return self.missing

    def start_worker(self):
        self.workers.append(Worker(actor=None, source=None, phase="loading"))
        self.most_workers = max(self.most_workers, len(self.workers))

    def ready_for_more(self):
        return [worker for worker in self.workers if worker.may_go_on and worker.queued is None]

    def in_phase(self, *phases):
        return [worker for worker in self.workers if worker.phase in phases]

    def start_shards(self, worker, tasks):
        assert worker.phase == "idle"
        worker.phase, worker.open = "busy", {task.shard_id: () for task in tasks}
        self.started += worker.open
        self.given.append(list(worker.open))

    def wait(self, timeout_s):
        self._waits += 1
        action = self._script.get(self._waits)
        if action is not None:
            yield from action(self) or ()
            return
        for worker in list(self.workers):
            if worker.phase == "loading":
                worker.phase, worker.name = "idle", f"host:{self._loaded}"
                self._loaded += 1
                yield Loaded(worker, {"worker": worker.name, "engine": self.engine, "engine_hash": "h"})
            elif worker.phase == "busy":
                for shard_id in worker.open:
                    yield Reported(worker, shard_id, Progress(("s0",), 1))
                    worker.phase = "idle"
                    yield Reported(worker, shard_id, Committed(ShardStats(rows=1, ok=1), 10, {}))

    def leave_nodes(self):
        found, self.leaving = self.leaving, []
        for worker in found:
            worker.leaving = True
        self.workers = [worker for worker in self.workers if not worker.leaving or worker.phase == "busy"]
        return found

    def dismiss(self, worker):
        self.workers.remove(worker)

    def dismiss_all(self):
        self.workers.clear()


class Sayings(Observer, list):
    """An observer that remembers."""

    def progress(self, shard_id, num_ok, num_error):
        self.append(("progress", shard_id))

    def restarted(self, shard_id, reason):
        self.append(("restarted", shard_id))

    def say(self, sentence):
        self.append(sentence)


class Storage:
    """What the output says, by order of a test."""

    def __init__(self, parts=(), ours=True):
        self.parts, self.ours, self.asked = set(parts), ours, []

    def find(self, shard_ids):
        self.asked.append(list(shard_ids))
        return {shard_id: ShardStats(rows=1, ok=1) for shard_id in shard_ids if shard_id in self.parts}

    def is_ours(self):
        return self.ours


def make_dispatcher(
    fleet, num_shards=3, max_load_failures=2, clock=lambda: 0.0, storage=None, together=1, attempts=None
):
    ledger = ShardLedger(range(num_shards), max_attempts=2)
    observer = Sayings()
    make_task = lambda assignment: SimpleNamespace(shard_id=assignment.shard_id)  # noqa: E731
    return Dispatcher(
        ledger,
        fleet,
        LoadGuard(max_load_failures, clock),
        make_task,
        observer,
        EngineWatch(),
        storage,
        together=together,
        attempts=attempts,
    ), observer


class SlowShard:
    """Two workers and four shards: 0, 1 and 3 take 20 seconds, and 2 is not finished after 41."""

    def __init__(self, rest):
        self.now = 0.0
        self.fleet = ScriptedFleet(
            room=2, script={2: self.finish_two, 3: self.finish_third, 4: self.wait, **rest}
        )
        self.attempts = Attempts(lambda: self.now)
        self.storage = Storage()
        self.dispatcher, self.observer = make_dispatcher(
            self.fleet, num_shards=4, storage=self.storage, attempts=self.attempts
        )

    def finish_two(self, _fleet):
        self.now += 20
        for shard_id, worker in enumerate(self.fleet.workers):
            worker.phase = "idle"
            yield Reported(worker, shard_id, Committed(ShardStats(rows=1, ok=1), 10, {}))

    def finish_third(self, _fleet):
        slow, quick = self.fleet.workers
        self.now += 20
        yield Reported(slow, 2, Progress(("a",), 1))
        quick.phase = "idle"
        yield Reported(quick, 3, Progress(("b",), 1))
        yield Reported(quick, 3, Committed(ShardStats(rows=1, ok=1), 10, {}))

    def wait(self, _fleet):
        self.now += 20
        assert self.fleet.started == [0, 1, 2, 3]
        self.now += 1
        return ()


def test_an_idle_worker_tries_the_last_shard_where_another_takes_far_too_long_and_the_first_part_counts():
    def quick_one_wins(fleet):
        slow, quick = fleet.workers
        assert (slow.phase, quick.phase, list(quick.open)) == ("busy", "busy", [2])
        yield Reported(quick, 2, Progress(("a", "c"), 2))
        quick.phase = "idle"
        yield Reported(quick, 2, Committed(ShardStats(rows=2, ok=2, worker="quick"), 10, {}))
        left.extend(fleet.workers)
        yield Reported(slow, 2, Committed(ShardStats(rows=2, ok=2, worker="slow"), 10, {}))

    left = []
    scene = SlowShard({5: quick_one_wins})
    outcome = scene.dispatcher.run()
    assert scene.fleet.started == [0, 1, 2, 3, 2]
    assert [worker.phase for worker in left] == ["idle"]  # the slow one is ended
    assert (sorted(outcome.committed), outcome.committed[2].worker) == ([0, 1, 2, 3], "quick")
    assert (outcome.num_bytes, outcome.failed, outcome.incidents) == (40, {}, [])
    said = "shard 2 takes far longer than the others, so worker host:1 tries it, too; the first part counts"
    assert scene.observer.count(said) == 1
    assert 2 in scene.storage.asked[-1]  # what is there in the end, the output tells


def test_a_second_attempt_that_is_lost_changes_nothing_for_the_first():
    def lose_the_second(fleet):
        quick = fleet.workers.pop()
        yield Lost(quick, 2, ("a",), False, "its process died")

    def slow_one_wins(fleet):
        [slow] = fleet.workers
        slow.phase = "idle"
        yield Reported(slow, 2, Committed(ShardStats(rows=1, ok=1, worker="slow"), 10, {}))

    scene = SlowShard({5: lose_the_second, 6: slow_one_wins})
    outcome = scene.dispatcher.run()
    assert scene.fleet.started == [0, 1, 2, 3, 2]
    assert (outcome.committed[2].worker, outcome.failed) == ("slow", {})
    assert [incident["kind"] for incident in outcome.incidents] == ["death"]
    assert ("restarted", 2) not in scene.observer


def test_a_slow_shard_that_both_attempts_lose_is_tried_again_and_counts_one_failure():
    def lose_both(fleet):
        for worker in list(fleet.workers):
            yield Lost(worker, 2, ("a",), False, "its process died")
        fleet.workers.clear()

    scene = SlowShard({5: lose_both})
    outcome = scene.dispatcher.run()
    assert scene.fleet.started == [0, 1, 2, 3, 2, 2]
    assert (sorted(outcome.committed), outcome.failed) == ([0, 1, 2, 3], {})
    assert scene.dispatcher._ledger.num_failures == 1


def test_a_worker_that_is_at_another_shard_too_is_not_ended_over_the_one_it_lost():
    def quick_one_wins(fleet):
        slow, quick = fleet.workers
        slow.open = {2: ("a",), 7: ("b",)}
        scene.attempts.begin(slow, 7, plain=True)
        quick.phase = "idle"
        yield Reported(quick, 2, Committed(ShardStats(rows=1, ok=1, worker="quick"), 10, {}))
        assert slow in fleet.workers

    scene = SlowShard({5: quick_one_wins})
    assert scene.dispatcher.run().committed[2].worker == "quick"


def fail_to_load(mistake=None):
    def action(fleet):
        worker = fleet.workers.pop()
        yield LoadFailed(worker, "no memory", mistake)

    return action


def lose(fleet):
    worker = fleet.workers.pop()
    yield Lost(worker, shard_of(worker), ("a", "b"), raised=False, reason="its process died")


def raise_over(sample, last=True):
    """A worker raises over a sample; the last one, or the first one."""

    def action(fleet):
        worker = fleet.workers.pop(-1 if last else 0)
        yield Lost(worker, shard_of(worker), (sample,), raised=True, reason="CUDA error")

    return action


def press(times):
    def action(_fleet):
        for _ in range(times):
            signal.raise_signal(signal.SIGINT)  # to this thread, so two never become one

    return action


def test_every_shard_is_published_once_by_a_worker_with_one_shard_at_a_time():
    fleet = ScriptedFleet(room=2)
    outcome = make_dispatcher(fleet, num_shards=5)[0].run()
    assert fleet.started == [0, 1, 2, 3, 4]
    assert sorted(outcome.committed) == [0, 1, 2, 3, 4]
    assert (outcome.num_bytes, outcome.num_workers, outcome.stopped_by) == (50, 2, None)


def test_small_shards_are_given_several_at_a_time_and_fewer_where_few_are_left():
    fleet = ScriptedFleet(room=2)
    outcome = make_dispatcher(fleet, num_shards=80, together=6)[0].run()
    sizes = [len(shards) for shards in fleet.given]
    assert (sizes[0], sizes[-1]) == (6, 1)
    assert sizes == sorted(sizes, reverse=True)
    assert fleet.started == sorted(outcome.committed) == list(range(80))


def test_what_is_tried_again_is_given_alone_and_what_was_not_begun_counts_as_never_tried():
    def lose_the_second(fleet):
        worker = fleet.workers.pop()
        first, second, *others = worker.open
        yield Reported(worker, first, Committed(ShardStats(rows=1, ok=1), 10, {}))
        yield Lost(worker, second, ("a", "b"), False, "its process died")
        for shard_id in others:
            yield Lost(worker, shard_id, (), False, "its process died", innocent=True, begun=False)

    fleet = ScriptedFleet(script={2: lose_the_second})
    dispatcher, observer = make_dispatcher(fleet, num_shards=40, together=4)
    outcome = dispatcher.run()
    assert fleet.given[0] == [0, 1, 2, 3]
    assert sorted(fleet.given[1]) == [2, 3, 4, 5]
    assert fleet.given[-1] == [1]
    assert [line for line in observer if line[0] == "restarted"] == [("restarted", 1)]
    assert {
        shard: state.attempt for shard, state in dispatcher._ledger._states.items() if state.attempt > 1
    } == {1: 2}
    assert len(outcome.committed) == 40


@pytest.mark.parametrize(("room", "num_shards", "most"), [(8, 3, 3), (2, 3, 2), (1, 1, 1)])
def test_no_more_workers_than_room_or_shards(room, num_shards, most):
    fleet = ScriptedFleet(room)
    make_dispatcher(fleet, num_shards)[0].run()
    assert fleet.most_workers == most


def test_nodes_that_join_get_workers():
    def grow(fleet):
        fleet._room = 3

    fleet = ScriptedFleet(room=1, script={2: grow})
    make_dispatcher(fleet, num_shards=9)[0].run()
    assert fleet.most_workers == 3


def test_a_worker_whose_node_leaves_gets_no_further_shard_and_is_replaced():
    def leave(fleet):
        [worker] = fleet.workers
        worker.node, fleet.leaving = "n", [worker]
        return ()

    seen = []
    script = {2: leave, 3: lambda fleet: seen.append([worker.phase for worker in fleet.workers]) or ()}
    fleet = ScriptedFleet(script=script)
    dispatcher, observer = make_dispatcher(fleet)
    outcome = dispatcher.run()
    assert seen == [["busy", "loading"]]
    assert (sorted(outcome.committed), fleet.started, fleet.most_workers) == ([0, 1, 2], [0, 1, 2], 2)
    assert outcome.committed.keys() == {0, 1, 2}
    said = "the node of worker host:0 is about to leave: what is begun there is finished, and no more is given to it"
    assert observer.count(said) == 1


def test_waiting_for_a_node_is_said_again_after_twice_as_long():
    def wait(seconds):
        def action(fleet):
            fleet.missing = Starving("GPU", seconds, for_good=False)
            return ()

        return action

    seconds = (20, 21, 50, 63, 70, 500)
    fleet = ScriptedFleet(script={number: wait(length) for number, length in enumerate(seconds, 1)})
    dispatcher, observer = make_dispatcher(fleet)
    dispatcher.run()
    said = [line for line in observer if "waiting" in line]
    assert said == [f"still waiting for a GPU, for {length} seconds now" for length in (20, 50, 70, 500)]


def test_a_node_that_will_not_come_back_ends_the_run():
    fleet = ScriptedFleet()
    fleet.missing = Starving("node with 1 free CPU", 20, for_good=True)
    with pytest.raises(
        RunFailedError, match="Ray on this machine has lost its node: there is no node with 1 free CPU"
    ):
        make_dispatcher(fleet)[0].run()


def test_a_fleet_that_lost_workers_while_loading_grows_again():
    seconds = [0.0]

    def fail_both(fleet):
        for _ in range(2):
            yield LoadFailed(fleet.workers.pop(), "no memory", None)

    def later(fleet):
        seconds[0] += 30
        return ()

    def first_loads(fleet):
        worker = fleet.workers[0]
        worker.phase, worker.name = "idle", "host:0"
        yield Loaded(worker, {"worker": worker.name, "engine": {}, "engine_hash": "h"})

    fleet = ScriptedFleet(room=3, script={1: first_loads, 2: fail_both, 3: later})
    dispatcher, observer = make_dispatcher(fleet, num_shards=9, clock=lambda: seconds[0])
    outcome = dispatcher.run()
    assert "a worker could not load: no memory" in observer
    assert "a worker could not load; the next one is tried in 30 seconds: no memory" in observer
    assert (len(outcome.committed), outcome.num_workers) == (9, 3)


def test_a_lost_worker_is_replaced_and_its_shard_done_again():
    fleet = ScriptedFleet(script={2: lose})
    dispatcher, observer = make_dispatcher(fleet)
    outcome = dispatcher.run()
    assert fleet.started == [0, 1, 2, 0]
    assert sorted(outcome.committed) == [0, 1, 2]
    assert ("restarted", 0) in observer
    assert [incident["kind"] for incident in outcome.incidents] == ["death"]


def test_a_shard_that_keeps_dying_is_given_up_after_the_others_are_done():
    fleet = ScriptedFleet(script={2: lose, 6: lose})
    outcome = make_dispatcher(fleet)[0].run()
    assert fleet.started == [0, 1, 2, 0]
    assert sorted(outcome.committed) == [1, 2]
    assert outcome.failed == {0: "2 attempts failed, the last one because its process died"}


def test_the_first_signal_finishes_what_is_under_way():
    fleet = ScriptedFleet(room=2, script={2: press(1)})
    dispatcher, observer = make_dispatcher(fleet, num_shards=9)
    outcome = dispatcher.run()
    assert sorted(outcome.committed) == [0, 1]
    assert outcome.stopped_by is signal.SIGINT
    assert observer[0] == "draining: finishing 2 shards under way; press again to stop now"
    assert fleet.workers == []


def test_the_second_signal_stops_at_once():
    fleet = ScriptedFleet(room=2, script={2: press(2)})
    outcome = make_dispatcher(fleet, num_shards=9)[0].run()
    assert outcome.committed == {}
    assert outcome.stopped_by is signal.SIGINT


def test_a_signal_during_the_last_shard_changes_nothing():
    outcome = make_dispatcher(ScriptedFleet(script={2: press(1)}), num_shards=1)[0].run()
    assert outcome.stopped_by is None


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    make_dispatcher(ScriptedFleet())[0].run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_mistake_in_the_model_reaches_the_user_at_once():
    fleet = ScriptedFleet(script={1: fail_to_load(CheckpointError("w.pth: truncated"))})
    with pytest.raises(CheckpointError, match="truncated"):
        make_dispatcher(fleet)[0].run()
    assert fleet.workers == []


def test_a_mistake_on_one_node_does_not_end_a_run_that_works_elsewhere():
    def lose_and_fail(fleet):
        yield from lose(fleet)

    fleet = ScriptedFleet(script={2: lose_and_fail, 3: fail_to_load(CheckpointError("no such file"))})
    outcome = make_dispatcher(fleet)[0].run()
    assert sorted(outcome.committed) == [0, 1, 2]


def test_waiting_for_a_full_gpu_is_said_once_and_is_no_failure_to_load():
    def wait(fleet):
        yield Waiting(fleet.workers[0], AwaitingMemory("the model does not fit", 1))

    fleet = ScriptedFleet(script={1: wait, 2: wait, 3: wait})
    dispatcher, observer = make_dispatcher(fleet, max_load_failures=1)
    outcome = dispatcher.run()
    assert (
        observer.count(
            "a worker waits for memory of its GPU, for two minutes at most: the model does not fit"
        )
        == 1
    )
    assert (sorted(outcome.committed), outcome.incidents) == ([0, 1, 2], [])


def test_an_output_that_workers_cannot_see_reaches_the_user_at_once():
    def lose(fleet):
        worker = fleet.workers.pop()
        yield Lost(worker, 0, (), raised=True, reason="?", mistake=OutputFolderError("out: not visible"))

    with pytest.raises(OutputFolderError, match="not visible"):
        make_dispatcher(ScriptedFleet(script={2: lose}))[0].run()


def misplace(fleet):
    worker = fleet.workers.pop(0)
    worker.name = "bad:0"
    mistake = OutputFolderError("out: not visible to worker bad:0")
    yield Lost(worker, shard_of(worker), (), raised=True, reason=str(mistake), mistake=mistake)


def test_a_node_without_the_output_costs_its_worker_and_no_other():
    fleet = ScriptedFleet(room=2, script={2: misplace})
    dispatcher, observer = make_dispatcher(fleet, num_shards=5, storage=Storage())
    outcome = dispatcher.run()
    assert sorted(outcome.committed) == [0, 1, 2, 3, 4]
    assert "the run goes on with one worker fewer: out: not visible to worker bad:0" in observer
    assert (outcome.failed, fleet.most_workers) == ({}, 2)
    assert [incident["kind"] for incident in outcome.incidents] == ["place"]


def test_an_output_that_no_node_sees_reaches_the_user():
    fleet = ScriptedFleet(room=2, script={2: misplace, 3: misplace})
    with pytest.raises(OutputFolderError, match="not visible"):
        make_dispatcher(fleet, storage=Storage())[0].run()


def test_an_output_that_is_not_the_jobs_any_more_ends_the_run_at_once():
    fleet = ScriptedFleet(room=2, script={2: misplace})
    with pytest.raises(OutputFolderError):
        make_dispatcher(fleet, num_shards=5, storage=Storage(ours=False))[0].run()
    assert fleet.started == [0, 1]


def lose_at_publishing(fleet):
    worker = fleet.workers.pop()
    yield Lost(worker, shard_of(worker), (), raised=False, reason="it gave no sign of life for 900 seconds")


def test_a_part_that_is_there_is_done_whatever_became_of_its_worker():
    fleet = ScriptedFleet(script={2: lose_at_publishing})
    outcome = make_dispatcher(fleet, storage=Storage(parts=[0]))[0].run()
    assert (fleet.started, sorted(outcome.committed)) == ([0, 1, 2], [0, 1, 2])


def test_a_part_that_arrives_late_is_not_told_as_given_up():
    storage = Storage()

    def lose_for_good(fleet):
        storage.parts.add(0)  # the upload of a killed worker may still arrive
        yield from lose(fleet)

    fleet = ScriptedFleet(script={2: lose, 6: lose_for_good})
    outcome = make_dispatcher(fleet, storage=storage)[0].run()
    assert (fleet.started, sorted(outcome.committed), outcome.failed) == ([0, 1, 2, 0], [0, 1, 2], {})


def test_a_run_that_is_stopped_counts_the_parts_that_are_there():
    fleet = ScriptedFleet(room=2, script={2: press(2)})
    outcome = make_dispatcher(fleet, num_shards=9, storage=Storage(parts=[1]))[0].run()
    assert (list(outcome.committed), outcome.stopped_by) == ([1], signal.SIGINT)


def test_workers_that_never_load_end_the_run():
    fleet = ScriptedFleet(script={1: fail_to_load(), 2: fail_to_load()})
    with pytest.raises(RunFailedError, match="2 workers in a row could not load: no memory"):
        make_dispatcher(fleet)[0].run()


def test_what_happened_is_known_after_a_run_that_raised():
    fleet = ScriptedFleet(script={2: lose, 3: fail_to_load(), 4: fail_to_load()})
    dispatcher, _ = make_dispatcher(fleet)
    with pytest.raises(RunFailedError):
        dispatcher.run()
    assert [incident["kind"] for incident in dispatcher.outcome.incidents] == ["death", "load", "load"]


def test_an_outcome_shares_nothing_with_the_ledger():
    fleet = ScriptedFleet(script={2: lose, 6: lose})
    dispatcher, _ = make_dispatcher(fleet)
    outcome = dispatcher.run()
    outcome.failed.clear()
    assert list(dispatcher._ledger.failed) == [0]


def test_shards_that_are_missing_change_a_copy_of_the_outcome():
    outcome = Outcome(committed={0: ShardStats(), 1: ShardStats()}, failed={2: "dead"})
    other = outcome.without({1: "gone"})
    assert (list(other.committed), other.failed) == ([0], {1: "gone", 2: "dead"})
    assert (list(outcome.committed), outcome.failed) == ([0, 1], {2: "dead"})


def test_what_is_odd_about_an_engine_is_said():
    fleet = ScriptedFleet(room=2)
    fleet.engine = {"backend_fallback": "no compiler"}
    dispatcher, observer = make_dispatcher(fleet)
    dispatcher.run()
    assert observer.count("Warning: worker host:0: no compiler") == 1


def test_a_place_where_nobody_succeeds_is_left_and_its_samples_are_given_back():
    def good_one_works(fleet):
        good, bad = fleet.workers
        good.phase, bad.name = "idle", "bad:0"
        yield Reported(good, shard_of(good), Progress(("x",), 1))
        yield Reported(good, shard_of(good), Committed(ShardStats(rows=1, ok=1), 10, {}))

    def load(fleet):
        worker = fleet.workers[-1]
        worker.phase, worker.name = "idle", "bad:1"
        yield Loaded(worker, {"worker": worker.name, "engine": {}, "engine_hash": "h"})

    script = {2: good_one_works, 3: raise_over("a"), 4: load, 5: raise_over("b"), 6: load, 7: raise_over("c")}
    fleet = ScriptedFleet(room=2, script=script)
    dispatcher, observer = make_dispatcher(fleet, num_shards=6)
    outcome = dispatcher.run()
    assert any("in a row made no image on bad, so the run goes on" in line for line in observer)
    assert sorted(outcome.committed) == [0, 1, 2, 3, 4, 5]
    assert outcome.failed == {}


def test_workers_that_make_another_image_after_they_raised_leave_the_samples_guilty():
    def prove_and_raise(sample):
        def action(fleet):
            worker = fleet.workers[-1]
            yield Reported(worker, shard_of(worker), Started((sample,)))
            yield Reported(worker, shard_of(worker), Proven())
            yield from raise_over(sample)(fleet)

        return action

    def in_turn(samples):
        return {2 * number: prove_and_raise(sample) for number, sample in enumerate(samples, 1)}

    fleet = ScriptedFleet(script=in_turn("abcd"))
    dispatcher, observer = make_dispatcher(fleet, num_shards=4)
    outcome = dispatcher.run()
    assert not any("made no image" in line for line in observer)
    assert sorted(outcome.committed) == [0, 1, 2, 3]


def test_a_head_that_is_lost_ends_the_run_and_what_the_output_has_counts():
    fleet = ScriptedFleet(script={2: lambda _fleet: [HeadLost("the head has gone")]})
    dispatcher, _ = make_dispatcher(fleet, storage=Storage(parts=[0]))
    with pytest.raises(RunFailedError, match="the head has gone"):
        dispatcher.run()
    assert list(dispatcher.outcome.committed) == [0]
    assert fleet.workers == []


def test_a_run_in_which_nobody_succeeds_ends_and_names_the_exception():
    script = {2 * number: raise_over(sample) for number, sample in enumerate("abc", 1)}
    with pytest.raises(RunFailedError, match="3 workers in a row made no image: CUDA error"):
        make_dispatcher(ScriptedFleet(script=script), num_shards=3)[0].run()


def test_a_run_whose_only_place_breaks_ends_and_names_the_exception():
    script = {2 + 2 * number: raise_over(sample) for number, sample in enumerate("abcd", 1)}
    dispatcher, observer = make_dispatcher(ScriptedFleet(script=script), num_shards=9)
    with pytest.raises(RunFailedError, match="no worker is left that makes images: CUDA error"):
        dispatcher.run()
    assert any("so the run goes on with one worker fewer: CUDA error" in line for line in observer)
    assert sorted(dispatcher.outcome.committed) == [0, 1]


def refuse(fleet):
    [worker, *_] = fleet.in_phase("busy")
    yield Reported(worker, shard_of(worker), Refused("PermissionError: 403", 7))


def test_nothing_is_begun_while_the_output_refuses_a_part_and_all_goes_on_after():
    begun = []

    def look(fleet):
        begun.append(list(fleet.started))
        return ()

    fleet = ScriptedFleet(script={2: refuse, 3: look, 4: refuse})
    dispatcher, observer = make_dispatcher(fleet)
    outcome = dispatcher.run()
    assert begun == [[0]]
    assert sorted(outcome.committed) == [0, 1, 2]
    said = "shard 0 is kept and its publication tried 7 times more, and no other shard is begun until then: "
    assert observer.count(f"{said}PermissionError: 403") == 1


def test_a_part_that_the_output_never_takes_ends_the_run_once_the_others_are_finished():
    def give_up(fleet):
        worker = fleet.workers.pop(0)
        yield Lost(worker, shard_of(worker), (), raised=True, reason="PermissionError: 403", refused=True)

    fleet = ScriptedFleet(room=2, script={2: refuse, 3: give_up})
    dispatcher, observer = make_dispatcher(fleet, num_shards=9)
    with pytest.raises(RunFailedError, match="the output does not take a part: PermissionError: 403"):
        dispatcher.run()
    assert (fleet.started, list(dispatcher.outcome.committed)) == ([0, 1], [1])
    assert "draining: finishing 1 shard under way" in observer


def test_a_shard_that_was_lost_over_another_one_is_repeated_without_counting_it():
    def lose_two(fleet):
        worker = fleet.workers.pop()
        [shard_id] = worker.open
        yield Lost(worker, shard_id, (), False, "its process died", innocent=True)

    script = {2 + 2 * number: lose_two for number in range(5)}  # max_attempts is 2
    dispatcher, observer = make_dispatcher(ScriptedFleet(script=script), num_shards=1)
    outcome = dispatcher.run()
    assert (list(outcome.committed), outcome.failed, dispatcher._ledger.num_failures) == ([0], {}, 0)
    assert observer.count(("restarted", 0)) == 5


def test_a_worker_that_is_ready_for_more_gets_the_shard_after():
    def ready(fleet):
        [worker] = fleet.workers
        worker.may_go_on = True
        dispatcher._ledger.commit(0)  # nobody tells of shard 0 any more
        return ()

    fleet = ScriptedFleet(script={2: ready})
    given = []
    start = fleet.start_shards

    def start_shards(worker, tasks):
        given.append((tasks[0].shard_id, worker.phase))
        if worker.may_go_on:
            worker.may_go_on, worker.phase, worker.open = False, "idle", {}
        start(worker, tasks)

    fleet.start_shards = start_shards
    dispatcher, _ = make_dispatcher(fleet, num_shards=2)
    dispatcher.run()
    assert given == [(0, "idle"), (1, "busy")]


def test_a_part_without_tries_left_ends_the_run_once_its_worker_has_finished_the_others():
    def give_up(fleet):
        [worker] = fleet.workers
        [shard_id] = worker.open
        dispatcher._ledger.take(fresh=True)
        dispatcher._attempts.begin(worker, 1, plain=True)
        worker.open = {1: ()}
        yield Reported(worker, shard_id, Refused("PermissionError: 403", 0))

    dispatcher, _ = make_dispatcher(ScriptedFleet(script={2: give_up}), num_shards=9)
    with pytest.raises(RunFailedError, match="the output does not take a part: PermissionError: 403"):
        dispatcher.run()
    assert list(dispatcher.outcome.committed) == [1]
