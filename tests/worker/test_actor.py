import errno
import functools
import json
import pickle
import threading
from dataclasses import replace
from itertools import chain

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toprovar_batch.worker import shard_work
from toprovar_batch.worker.actor import GenerationWorker
from toprovar_batch.worker.errors import CheckpointError, OutputFolderError
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.part_file import PartWriter, dataset_schema, read_stats
from toprovar_batch.worker.part_identity import identity_hash, recorded_job
from toprovar_batch.worker.publishing import with_signs
from toprovar_batch.worker.request import GenerationResult
from toprovar_batch.worker.shard_events import (
    Alive,
    Committed,
    Declined,
    Progress,
    Proven,
    Refused,
    ShardTask,
    Started,
)
from toprovar_batch.worker.shard_stats import ShardStats
from toprovar_batch.worker.worker_errors import DeviceFullError, OutputRefusedError, WorkerError


class Done:
    """A batch that is done when it has begun, as on a CPU."""

    def __init__(self, results):
        self._results = results

    def wait_until_made(self):
        pass

    def results(self):
        return self._results


class RecordingEngine:
    """Answers at once and remembers its batches; a prompt "fail ..." gives an error result."""

    def __init__(self):
        self.batches = []

    def setup(self):
        pass

    def plan_batches(self, requests):
        return [requests[start : start + 2] for start in range(0, len(requests), 2)]

    def begin(self, batch):
        return Done(self.generate(batch))

    def generate(self, batch):
        self.batches.append([request.prompt for request in batch])
        return [
            GenerationResult(request.sample_id, "error", "no")
            if request.prompt.startswith("fail")
            else GenerationResult(
                request.sample_id,
                "ok",
                image=b"img",
                width=1,
                height=1,
                format="png",
                statistics=ImageStatistics(text_ms=2.0),
            )
            for request in batch
        ]

    def describe(self):
        return {"device": "none"}

    def usage(self):
        return {"batches": len(self.batches)}


def make_task(tmp_path, prompts, errors=None, **changes):
    samples = pa.table(
        {
            "sample_id": [f"s{row}" for row in range(len(prompts))],
            "prompt": prompts,
            "negative_prompt": pa.nulls(len(prompts), pa.string()),
            "seed": list(range(len(prompts))),
            "h_div_w": [1.0] * len(prompts),
            "prompt_error": pa.array(errors or [None] * len(prompts), pa.string()),
            "note": [f"note {row}" for row in range(len(prompts))],
        }
    )
    defaults = {
        "shard_id": 0,
        "samples": samples,
        "schema": dataset_schema([samples.schema.field("note")]),
        "target": str(tmp_path / "data" / "part.parquet"),
        "scratch": str(tmp_path / "tmp"),
        "labels": {"model": "tiny", "policy": "dense"},
    }
    return ShardTask(**defaults | changes)


def make_worker():
    engine = RecordingEngine()
    worker = GenerationWorker(lambda: engine)
    worker.setup()
    return worker, engine


def read_rows(task):
    return {row["sample_id"]: row for row in pq.read_table(task.target).to_pylist()}


def test_a_shard_tells_every_batch_and_commits_last(tmp_path):
    worker, _ = make_worker()
    events = list(worker.run(make_task(tmp_path, ["a", "b", "fail"])))
    assert events[:-1] == [
        Started(("s0", "s1")),
        Started(("s2",)),
        Progress(("s0", "s1"), 2),
        Progress(("s2",), 0),
    ]
    assert [event.num_error for event in events[2:4]] == [0, 1]
    assert isinstance(events[-1], Committed)
    assert (events[-1].stats.rows, events[-1].stats.ok, events[-1].stats.errors) == (3, 2, 1)


def test_an_error_row_and_its_footer_show_no_credentials(tmp_path):
    worker, engine = make_worker()
    make, error = engine.generate, "cannot read https://user:S3cr3t@host/x?sig=S3cr3t now"
    engine.generate = lambda batch: [
        replace(made, error=error) if made.status == "error" else made for made in make(batch)
    ]
    task = make_task(tmp_path, ["a", "fail", "b", "c"], [None, None, error, None], poisoned={"s3": error})
    stats = list(worker.run(task))[-1].stats
    masked = "cannot read https://***@host/x?sig=*** now"
    assert [row["error"] for row in read_rows(task).values()].count(masked) == 3
    assert list(stats.error_kinds) == [masked]
    assert "S3cr3t" not in json.dumps(read_stats(pq.read_metadata(task.target)))


def test_equal_engines_have_equal_hashes_whatever_they_have_done(tmp_path):
    worker, engine = make_worker()
    task = make_task(tmp_path, ["a", "b"])
    committed = list(worker.run(task))[-1]
    assert committed.engine == {"device": "none", "batches": 1}  # what it is, and what it did
    later, earlier = worker.setup(), make_worker()[0].setup()
    assert later["engine"] != earlier["engine"]
    assert later["engine_hash"] == earlier["engine_hash"] == committed.stats.engine
    engine.describe = lambda: {"device": "another"}
    assert worker.setup()["engine_hash"] != earlier["engine_hash"]


def test_rows_carry_sample_result_and_labels(tmp_path):
    worker, _ = make_worker()
    task = make_task(tmp_path, ["a", "fail"], attempt=3)
    list(worker.run(task))
    rows = read_rows(task)
    good, bad = rows["s0"], rows["s1"]
    assert good["image"] == {"bytes": b"img", "path": "s0.png"}
    assert (good["note"], good["seed"], good["model"], good["policy"]) == ("note 0", 0, "tiny", "dense")
    assert (good["attempt"], good["status"], good["error"], good["text_ms"]) == (3, "ok", None, 2.0)
    assert (bad["status"], bad["error"], bad["image"], bad["width"], bad["text_ms"]) == (
        "error",
        "no",
        None,
        None,
        None,
    )


def test_whether_a_failed_prompt_was_cut_is_null_unless_it_is_known(tmp_path):
    worker, engine = make_worker()
    known = {"s0": None, "s1": ImageStatistics(prompt_truncated=True), "s2": ImageStatistics(text_ms=1.0)}
    made = GenerationResult("s4", "ok", image=b"img", width=1, height=1, format="png")
    engine.generate = lambda batch: [
        GenerationResult.failed(request.sample_id, "no", known[request.sample_id])
        if request.sample_id in known
        else made
        for request in batch
    ]
    task = make_task(tmp_path, ["a", "b", "c", None, "e"], errors=[None, None, None, "not text", None])
    *_, committed = worker.run(task)
    found = {sample_id: row["prompt_truncated"] for sample_id, row in read_rows(task).items()}
    assert found == {"s0": None, "s1": True, "s2": False, "s3": None, "s4": None}
    assert {row["text_ms"] for row in read_rows(task).values()} == {None}
    footer = committed.stats.to_json()
    assert footer.pop("truncated") == 1
    assert ShardStats.from_json(footer).truncated == 0  # a part of an earlier version


def test_bad_prompts_and_poisoned_samples_never_reach_the_engine(tmp_path):
    worker, engine = make_worker()
    task = make_task(
        tmp_path, ["a", None, "c"], errors=[None, "not text", None], poisoned={"s2": "killed its worker"}
    )
    events = list(worker.run(task))
    assert events[0] == Progress(("s1", "s2"), 0)
    assert engine.batches == [["a"]]
    errors = {sample_id: row["error"] for sample_id, row in read_rows(task).items()}
    assert errors == {"s0": None, "s1": "not text", "s2": "killed its worker"}


def test_suspects_have_nothing_beside_them_and_the_others_run_in_batches_that_overlap(tmp_path):
    worker, engine = make_worker()
    task = make_task(tmp_path, list("abcdefghij"), suspects=(("s4",), ("s5", "s6", "s7")))
    events = list(worker.run(task))
    assert engine.batches == [["a", "b"], ["e"], ["f", "g"], ["h"], ["c", "d"], ["i", "j"]]
    alone = [("s0", "s1"), ("s4",), ("s5", "s6"), ("s7",)]  # first, a worker is seen to work
    in_turn = [event for ids in alone for event in (Started(ids), Progress(ids, len(ids)))]
    assert events[:-1] == [
        *in_turn,
        *(Started(("s2", "s3")), Started(("s8", "s9"))),
        *(Progress(("s2", "s3"), 2), Progress(("s8", "s9"), 2)),
    ]
    assert len(read_rows(task)) == 10


def test_rows_are_written_while_two_batches_are_in_the_engine_and_the_part_is_whole(tmp_path, monkeypatch):
    worker, engine = make_worker()
    begun = []  # batches begun at each write
    write = PartWriter.write
    monkeypatch.setattr(
        PartWriter, "write", lambda part, rows: begun.append(len(engine.batches)) or write(part, rows)
    )
    task = make_task(tmp_path, [f"p{row}" for row in range(9)])
    list(worker.run(task))
    assert begun == [3, 4, 5, 5, 5]
    assert list(read_rows(task)) == [f"s{row}" for row in range(9)]


def test_only_bad_prompts_need_no_engine(tmp_path):
    worker, engine = make_worker()
    task = make_task(tmp_path, ["", ""], errors=["x", "y"])
    list(worker.run(task))
    assert engine.batches == []
    assert [row["error"] for row in read_rows(task).values()] == ["x", "y"]


def test_kept_rows_stay_and_only_the_others_are_generated_again(tmp_path):
    worker, engine = make_worker()
    first = make_task(tmp_path, ["a", "fail", "c"])
    list(worker.run(first))
    before = read_rows(first)
    engine.batches.clear()
    again = make_task(tmp_path, ["a", "mended", "c"], kept=first.target, attempt=2)
    committed = list(worker.run(again))[-1]
    after = read_rows(again)
    assert engine.batches == [["mended"]]
    assert after["s0"] == before["s0"]
    assert (after["s1"]["status"], after["s1"]["attempt"]) == ("ok", 2)
    assert (committed.stats.rows, committed.stats.ok, committed.stats.generated) == (3, 3, 1)


def test_what_an_attempt_made_are_its_images_and_no_error_rows(tmp_path):
    worker, _ = make_worker()
    task = make_task(tmp_path, ["a", "fail", "c", None], errors=[None, None, None, "not text"])
    committed = list(worker.run(task))[-1]
    assert (committed.stats.rows, committed.stats.ok, committed.stats.generated) == (4, 2, 2)


def spoil(path, old, new):
    """Change bytes of a file, and nothing else of it."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path.read_bytes()


def test_a_corrupt_picture_is_not_kept_under_a_new_checksum(tmp_path):
    worker, engine = make_worker()
    task = make_task(tmp_path, ["a", "fail"])
    list(worker.run(task))
    spoiled = spoil(tmp_path / "data/part.parquet", b"img", b"imG")
    engine.batches.clear()
    (declined,) = worker.run(make_task(tmp_path, ["a", "mended"], kept=task.target, attempt=2))
    assert isinstance(declined, Declined)
    assert (declined.path, declined.reason != "") == (task.target, True)
    assert engine.batches == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "data/part.parquet"]
    assert (tmp_path / "data/part.parquet").read_bytes() == spoiled


def test_rows_of_other_samples_are_not_kept(tmp_path):
    worker, _ = make_worker()
    first = make_task(tmp_path, ["a", "fail", "c"])
    list(worker.run(first))
    (declined,) = worker.run(make_task(tmp_path, ["a", "fail"], kept=first.target, attempt=2))
    assert "sample s2 is there twice, or is not the shard's" in declined.reason


def test_an_engine_that_loses_a_sample_publishes_nothing(tmp_path):
    worker, engine = make_worker()
    generate = engine.generate
    engine.generate = lambda batch: generate(batch)[1:]
    task = make_task(tmp_path, ["a", "b"])
    with pytest.raises(WorkerError, match=r"results are not its samples: s0 missing, none too many"):
        list(worker.run(task))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_engine_that_gives_one_sample_twice_for_another_publishes_nothing(tmp_path):
    worker, engine = make_worker()
    generate = engine.generate
    engine.generate = lambda batch: [*generate(batch)[:1], *generate(batch)[:1]]
    with pytest.raises(WorkerError, match=r"results are not its samples: s1 missing, s0 too many"):
        list(worker.run(make_task(tmp_path, ["a", "b"])))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_engine_that_plans_one_sample_twice_for_another_publishes_nothing(tmp_path):
    worker, engine = make_worker()
    engine.plan_batches = lambda requests: [requests[:1], requests[:1]]
    with pytest.raises(WorkerError, match=r"rows are not its samples: s1 missing, s0 too many"):
        list(worker.run(make_task(tmp_path, ["a", "b"])))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class HoldsALockError(Exception):
    """Cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


@pytest.mark.parametrize(("prompts", "refused"), [(["fail"] * 3, True), (["fail"] * 2, False)])
def test_an_engine_that_makes_nothing_of_several_samples_publishes_nothing(tmp_path, prompts, refused):
    worker, _ = make_worker()
    task = make_task(tmp_path, [*prompts, None], errors=[*(None for _ in prompts), "not text"])
    if refused:
        with pytest.raises(WorkerError, match=r"^RuntimeError: none of 3 samples could be made: no$"):
            list(worker.run(task))
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    else:
        assert isinstance(list(worker.run(task))[-1], Committed)


def test_any_exception_becomes_one_line_that_can_be_pickled(tmp_path):
    worker, engine = make_worker()

    def fail(_batch):
        raise HoldsALockError("many\nlines and half a \ud800 character")

    engine.generate = fail
    with pytest.raises(WorkerError) as caught:
        list(worker.run(make_task(tmp_path, ["a"])))
    sentence = "HoldsALockError: many lines and half a \\ud800 character"
    assert str(pickle.loads(pickle.dumps(caught.value))) == sentence
    engine.setup = lambda: fail(None)
    with pytest.raises(WorkerError, match="HoldsALockError: many lines"):
        worker.setup()


def make_waiting_worker(monkeypatch, full):
    """A worker whose GPU is full at so many tries to load, and the waits between them."""
    made, waits = [], []

    class FullEngine(RecordingEngine):
        def fetch(self, count):
            made.append(self)

        def setup(self):
            if len(waits) < full:
                raise DeviceFullError(
                    "the model does not fit beside 70.0 GB that other processes hold on the GPU"
                )

    monkeypatch.setattr("toprovar_batch.worker.actor.time.sleep", waits.append)
    return GenerationWorker(FullEngine), waits


def test_a_gpu_that_others_fill_is_waited_for_and_told(monkeypatch):
    worker, waits = make_waiting_worker(monkeypatch, 3)
    *told, ready = worker.load()
    assert [(state.wait_s, "70.0 GB that other processes hold" in state.reason) for state in told] == [
        (1, True),
        (2, True),
        (4, True),
    ]
    assert (waits, ready["engine"]) == ([1, 2, 4], {"device": "none", "batches": 0})


def test_a_gpu_that_stays_full_ends_the_waiting(monkeypatch):
    worker, waits = make_waiting_worker(monkeypatch, 100)
    with pytest.raises(DeviceFullError, match="other processes hold"):
        list(worker.load())
    assert sum(waits) == 120


def test_a_mistake_of_the_user_is_raised_as_it_is():
    def fail():
        raise CheckpointError("weights.pth: truncated")

    with pytest.raises(CheckpointError, match="truncated"):
        GenerationWorker(fail).setup()


def test_a_failing_disk_is_not_blamed_on_the_samples(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    worker, _ = make_worker()
    monkeypatch.setattr("toprovar_batch.worker.shard_work.PartWriter.write", full_disk)
    events = worker.run(make_task(tmp_path, ["a"]))
    assert [next(events), next(events)] == [
        Started(("s0",)),
        Progress(("s0",), 1),
    ]  # out of the engine by now
    with pytest.raises(OutputRefusedError, match=r"^OSError: .*No space left"):
        next(events)


def refuse_parts(monkeypatch, times):
    """An output that refuses a part so often."""
    tries, real = [], PartWriter.show

    def show(part):
        tries.append(part)
        if len(tries) <= times:
            raise PermissionError("403 Forbidden")
        real(part)

    monkeypatch.setattr(PartWriter, "show", show)
    return tries


def test_the_images_of_a_refused_part_are_kept_and_published_later(tmp_path, monkeypatch):
    refuse_parts(monkeypatch, 2)
    worker, engine = make_worker()
    task = make_task(tmp_path, ["a"], publish_delays_s=(0, 0, 0))
    events = list(worker.run(task))
    refused = [event for event in events if isinstance(event, Refused)]
    assert refused == [Refused("PermissionError: 403 Forbidden", left) for left in (3, 2)]
    assert engine.batches == [["a"]]
    assert list(read_rows(task)) == ["s0"]


def test_a_part_that_is_refused_at_every_try_is_the_outputs_fault(tmp_path, monkeypatch):
    tries = refuse_parts(monkeypatch, 9)
    worker, engine = make_worker()
    task = make_task(tmp_path, ["a"], publish_delays_s=(0, 0))
    with pytest.raises(OutputRefusedError, match=r"^PermissionError: 403 Forbidden$"):
        list(worker.run(task))
    assert (len(tries), engine.batches) == (3, [["a"]])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_waits_between_tries_grow(tmp_path, monkeypatch):
    refuse_parts(monkeypatch, 9)
    slept = []
    monkeypatch.setattr("toprovar_batch.worker.publishing.time.sleep", slept.append)
    with pytest.raises(OutputRefusedError):
        list(make_worker()[0].run(make_task(tmp_path, ["a"])))
    assert slept == sorted(slept)
    assert 60 < sum(slept) < 600


def test_a_failing_disk_stops_a_shard_whose_next_batches_are_in_the_engine(tmp_path, monkeypatch):
    def full_disk(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    worker, engine = make_worker()
    monkeypatch.setattr("toprovar_batch.worker.shard_work.PartWriter.write", full_disk)
    events = []
    with pytest.raises(WorkerError, match=r"^OSError: .*No space left"):
        events.extend(worker.run(make_task(tmp_path, [f"p{row}" for row in range(9)])))
    assert len(engine.batches) == 3  # no more was begun
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_an_output_on_another_machine_is_the_users_mistake(tmp_path):
    worker, engine = make_worker()
    with pytest.raises(
        OutputFolderError, match=r"job\.json: not visible to worker .*; a cluster needs an output"
    ):
        list(worker.run(make_task(tmp_path, ["a"], record=str(tmp_path / "_job/job.json"))))
    assert engine.batches == []


def write_record(tmp_path, **identity):
    """Begin a job's folder; gives the address of its record and the hash of its identity."""
    record = tmp_path / "_job/job.json"
    record.parent.mkdir(exist_ok=True)
    record.write_text(json.dumps({"identity": identity}))
    return {"record": str(record), "job": identity_hash(identity)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tmp_path: write_record(tmp_path, seed=2), r"job\.json: belongs to another job now"),
        (
            lambda tmp_path: (tmp_path / "_job/job.json").unlink(),
            r"job\.json: was deleted while the job ran",
        ),
        (
            lambda tmp_path: (tmp_path / "_job/job.json").write_text("{") and None,
            r"job\.json: was damaged while the job ran",
        ),
    ],
    ids=["another job", "deleted", "damaged"],
)
def test_a_worker_whose_folder_is_another_jobs_by_now_publishes_nothing(tmp_path, change, reason):
    worker, engine = make_worker()
    generate = engine.generate
    engine.generate = lambda batch: (change(tmp_path) and None) or generate(batch)
    with pytest.raises(OutputFolderError, match=reason):
        list(worker.run(make_task(tmp_path, ["a"], **write_record(tmp_path, seed=1))))
    assert not (tmp_path / "data").exists()


def test_asking_a_slow_storage_whose_output_it_is_gives_signs_of_life(tmp_path, monkeypatch):
    answers, waiting = threading.Semaphore(0), threading.Event()

    def slow(address):
        assert threading.current_thread() is not threading.main_thread()
        waiting.set()
        answers.acquire()
        return recorded_job(address)

    monkeypatch.setattr(shard_work, "recorded_job", slow)
    monkeypatch.setattr(shard_work, "with_signs", functools.partial(with_signs, every_s=0))
    worker, _ = make_worker()
    events = worker.run(make_task(tmp_path, ["a"], **write_record(tmp_path, seed=1)))
    assert next(events) == Alive()
    assert waiting.is_set()
    answers.release()
    seen = [next(events)]
    while not isinstance(seen[-1], Progress):
        seen.append(next(events))
    waiting.clear()
    while not waiting.is_set():
        assert next(events) == Alive()
    answers.release()
    assert isinstance(list(events)[-1], Committed)


def test_a_shard_of_another_job_is_not_begun(tmp_path):
    worker, engine = make_worker()
    task = make_task(tmp_path, ["a"], **write_record(tmp_path, seed=1))
    write_record(tmp_path, seed=2)
    with pytest.raises(OutputFolderError, match="belongs to another job now"):
        list(worker.run(task))
    assert engine.batches == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"job": "another"}, "belongs to another job"), ({"shard_id": 7}, "it is the part of shard 0")],
)
def test_rows_of_another_jobs_part_are_not_kept(tmp_path, change, reason):
    worker, _ = make_worker()
    first = make_task(tmp_path, ["a", "fail"], job="mine")
    list(worker.run(first))
    (declined,) = worker.run(
        make_task(tmp_path, ["a", "b"], **{"job": "mine", "kept": first.target} | change)
    )
    assert reason in declined.reason


def test_rows_of_other_seeds_are_not_kept_even_from_a_part_that_names_no_job(tmp_path):
    worker, _ = make_worker()
    first = make_task(tmp_path, ["a", "fail"])
    list(worker.run(first))
    again = make_task(tmp_path, ["a", "fail"], job="mine", kept=first.target)
    seeds = pa.array([5, 6])
    again = replace(again, samples=again.samples.set_column(3, "seed", seeds))
    (declined,) = worker.run(again)
    assert "sample s0 is there twice, or is not the shard's" in declined.reason


def test_the_footer_counts_the_shard(tmp_path):
    worker, _ = make_worker()
    task = make_task(tmp_path, ["a", "fail", "fail", "fail", "fail"], shard_id=7)
    list(worker.run(task))
    stats = read_stats(pq.read_metadata(task.target))
    assert (stats["shard_id"], stats["rows"], stats["errors"], stats["attempt"]) == (7, 5, 4, 1)
    assert stats["error_kinds"] == {"no": {"count": 4, "sample_ids": ["s1", "s2", "s3"]}}
    assert stats["times_ms"]["text_ms"] == 2.0


def second(tmp_path, prompts, **changes):
    """The task of another shard, whose samples are called t0, t1, ..."""
    task = make_task(
        tmp_path, prompts, shard_id=1, target=str(tmp_path / "data" / "second.parquet"), **changes
    )
    names = pa.array([f"t{row}" for row in range(len(prompts))])
    return replace(task, samples=task.samples.set_column(0, "sample_id", names))


def test_a_shard_begins_while_the_one_before_is_finished_and_published(tmp_path):
    worker, engine = make_worker()
    first, other = make_task(tmp_path, ["a", "b", "c"]), second(tmp_path, ["d", "e"])
    told = [*worker.work(first)]
    assert told == [(0, Started(("s0", "s1"))), (0, Started(("s2",)))]
    assert [event.last for _, event in told] == [False, True]
    told = [*worker.work(other)]
    assert told[:2] == [(1, Started(("t0", "t1"))), (0, Progress(("s0", "s1"), 2))]
    assert engine.batches == [["a", "b"], ["c"], ["d", "e"]]
    told += worker.work(None)
    assert told[2] == (0, Progress(("s2",), 1))
    # A thread publishes the first part meanwhile, sooner or later.
    of_shards = [[event for shard_id, event in told[3:] if shard_id == number] for number in (0, 1)]
    assert of_shards[1][0] == Progress(("t0", "t1"), 2)
    committed = [of_shards[0], of_shards[1][1:]]
    assert [[type(event) for event in events] for events in committed] == [[Committed], [Committed]]
    assert [events[0].stats.ok for events in committed] == [3, 2]
    assert (list(read_rows(first)), list(read_rows(other))) == (["s0", "s1", "s2"], ["t0", "t1"])
    assert list(worker.work(None)) == []


@pytest.mark.parametrize("change", [{"attempt": 2}, {"suspects": (("t1",),)}])
def test_what_is_tried_again_has_no_other_shard_beside_it(tmp_path, change):
    worker, _ = make_worker()
    told = [*worker.work(make_task(tmp_path, ["a", "b", "c"]))]
    told += worker.work(second(tmp_path, ["d", "e"], **change))
    committed = next(number for number, (_, event) in enumerate(told) if isinstance(event, Committed))
    assert {shard_id for shard_id, _ in told[: committed + 1]} == {0}
    assert {shard_id for shard_id, _ in told[committed + 1 :]} == {1}


def test_an_exception_names_its_shard_and_the_part_on_its_way_is_published(tmp_path):
    worker, engine = make_worker()
    generate = engine.generate

    def fail(batch):
        if batch[0].sample_id == "t4":
            raise ValueError("no such colour")
        return generate(batch)

    engine.generate = fail
    first, other = make_task(tmp_path, ["a", "b"]), second(tmp_path, list("cdefgh"))
    list(worker.work(first))
    with pytest.raises(WorkerError, match="no such colour") as caught:
        list(chain(worker.work(other), worker.work(None)))
    assert pickle.loads(pickle.dumps(caught.value)).shard_id == 1
    assert list(read_rows(first)) == ["s0", "s1"]
    assert not list((tmp_path / "tmp").iterdir())


def _told_until_it_raises(worker, task):
    told = []
    with pytest.raises(WorkerError, match="no such colour"):
        told.extend(worker.run(task))
    return told


@pytest.mark.parametrize(
    ("guilty", "proves"), [("bad", True), ("", False), ("d", False)], ids=["samples", "place", "later"]
)
def test_an_engine_that_raised_before_its_first_image_tries_another_prompt(tmp_path, guilty, proves):
    worker, engine = make_worker()
    generate = engine.generate

    def fail(batch):
        if any(guilty in request.prompt for request in batch):
            raise ValueError("no such colour")
        return generate(batch)

    engine.generate = fail
    told = _told_until_it_raises(worker, make_task(tmp_path, ["bad" if proves else "a", "b", "c", "d"]))
    assert [event for event in told if isinstance(event, Proven)] == [Proven()] * proves
    assert engine.batches == {"bad": [["a red ball"]], "": [], "d": [["a", "b"]]}[guilty]


def test_the_time_of_a_shard_is_not_counted_twice(tmp_path, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("toprovar_batch.worker.shard_work.time.monotonic", lambda: float(next(clock)))
    worker, _ = make_worker()
    told = [
        *worker.work(make_task(tmp_path, ["a"])),
        *worker.work(second(tmp_path, ["b"])),
        *worker.work(None),
    ]
    seconds = [event.stats.wall_s for _, event in told if isinstance(event, Committed)]
    assert sum(seconds) <= next(clock) - 1


def test_a_part_that_is_refused_for_good_costs_no_image_of_the_shard_behind_it(tmp_path, monkeypatch):
    refuse_parts(monkeypatch, 2)
    worker, _ = make_worker()
    first = make_task(tmp_path, ["a", "b"], publish_delays_s=(0,))
    told = list(chain(worker.work(first), worker.work(second(tmp_path, ["c"])), worker.work(None)))
    assert [event for shard_id, event in told if shard_id == 0][2:] == [
        Refused("PermissionError: 403 Forbidden", left) for left in (1, 0)
    ]
    assert isinstance(told[-1][1], Committed)
    assert not list((tmp_path / "tmp").iterdir())


def shards_of_one_row(tmp_path, prompts):
    names = [pa.array([f"s{number}"]) for number in range(len(prompts))]
    tasks = [
        make_task(tmp_path, [prompt], shard_id=number, target=str(tmp_path / "data" / f"{number}.parquet"))
        for number, prompt in enumerate(prompts)
    ]
    return [
        replace(task, samples=task.samples.set_column(0, "sample_id", name))
        for task, name in zip(tasks, names, strict=True)
    ]


def test_several_shards_go_through_one_stream_which_tells_parts_along_with_what_comes_next(tmp_path):
    worker, _ = make_worker()
    tasks = shards_of_one_row(tmp_path, list("abcdef"))
    answers = [*worker.stream(tasks), *worker.stream([])]
    # The driver hears of a batch before it enters the engine, and of its end before its rows are written.
    urgent = [(shard_id, type(event)) for answer in answers for shard_id, event in answer]
    urgent = [told for told in urgent if told[1] is not Committed]
    order = [
        (0, Started),
        (1, Started),
        (2, Started),
        (0, Progress),
        (3, Started),
        (1, Progress),
        (4, Started),
    ]
    order += [(2, Progress), (5, Started), (3, Progress), (4, Progress), (5, Progress)]
    assert urgent == order
    assert all(isinstance(event, Committed) for answer in answers for _, event in answer[:-1])
    committed = [shard_id for answer in answers for shard_id, event in answer if isinstance(event, Committed)]
    assert committed == [0, 1, 2, 3, 4, 5]
    assert [list(read_rows(task)) for task in tasks] == [[f"s{number}"] for number in range(6)]


def test_a_stream_that_raises_has_told_which_parts_are_published(tmp_path):
    worker, _ = make_worker()
    tasks = shards_of_one_row(tmp_path, list("abc"))
    tasks[2] = replace(tasks[2], record=str(tmp_path / "no record"), job="x")
    answers, told = worker.stream(tasks), []
    with pytest.raises(OutputFolderError, match="not visible") as caught:
        told.extend(chain.from_iterable(answers))
    assert caught.value.shard_id == 2
    committed = [shard_id for shard_id, event in told if isinstance(event, Committed)]
    assert committed == [number for number in (0, 1) if (tmp_path / "data" / f"{number}.parquet").exists()]
