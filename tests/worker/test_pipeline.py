"""Batches that overlap: who waits for whom, told by what has begun and never by clocks."""

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from toprovar_batch.worker import engine as engine_module
from toprovar_batch.worker.engine import Engine
from toprovar_batch.worker.generated import PhaseTimes
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.pending import PendingBatch, QueuedImages
from toprovar_batch.worker.pipeline import Beginning, Finished, run_batches
from toprovar_batch.worker.request import GenerationRequest, GenerationResult
from toprovar_batch.worker.resolved import resolve
from toprovar_batch.worker.specs import EngineSpec

PATIENCE_S = 60  # until a test fails that would hang


def _requests(count):
    return [GenerationRequest(f"s{number}", "a cube", None, number) for number in range(count)]


class Diary:
    """An engine that notes what is asked of it."""

    def __init__(self):
        self.notes = []

    def begin(self, batch):
        number = batch[0].seed
        self.notes.append(f"begin {number}")
        return _Page(self.notes, number)


class _Page:
    def __init__(self, notes, number):
        self._notes, self._number = notes, number

    def wait_until_made(self):
        self._notes.append(f"made {self._number}")

    def results(self):
        self._notes.append(f"results {self._number}")
        return [GenerationResult(f"s{self._number}", "ok")]


def _follow(diary, count, *, overlap):
    """Run batches of one request, and note the steps among what was asked of the engine."""
    for step in run_batches(diary.begin, [[request] for request in _requests(count)], overlap=overlap):
        kind = "Beginning" if isinstance(step, Beginning) else "Finished"
        diary.notes.append(f"{kind} {step.batch[0].seed}")
    return diary.notes


def test_two_batches_are_on_the_device_and_the_one_before_them_is_encoded():
    assert _follow(Diary(), 4, overlap=True) == [
        *("Beginning 0", "begin 0"),
        *("Beginning 1", "begin 1"),
        *("made 0", "Beginning 2", "begin 2", "results 0", "Finished 0"),
        *("made 1", "Beginning 3", "begin 3", "results 1", "Finished 1"),
        *("results 2", "Finished 2", "results 3", "Finished 3"),
    ]


def test_without_overlap_a_batch_is_finished_before_the_next_begins():
    assert _follow(Diary(), 2, overlap=False) == [
        *("Beginning 0", "begin 0", "results 0", "Finished 0"),
        *("Beginning 1", "begin 1", "results 1", "Finished 1"),
    ]


@pytest.mark.parametrize("overlap", [True, False])
def test_no_batch_is_no_step(overlap):
    assert _follow(Diary(), 0, overlap=overlap) == []


class Device:
    """Stands in for a generator on a GPU: a batch of grey images leaves the device when the test permits it.

    Batches of more than `most` images do not fit into its memory.
    """

    device = torch.device("cpu")

    def batch_size_of(self, _h_div_w):
        return 4

    spec = resolve(EngineSpec())

    def release(self):
        self.releases += 1

    def __init__(self, most=4, permitted=True):
        self.most = most
        self.sizes = []
        self.releases = 0
        self.permits = threading.Semaphore(1000 if permitted else 0)
        self.third_began = threading.Event()

    def usage(self):
        return {}

    def begin(self, batch):
        self.sizes.append(len(batch))
        if len(self.sizes) == 3:
            self.third_began.set()
        if len(batch) > self.most:
            raise torch.OutOfMemoryError
        grey = torch.tensor([request.seed for request in batch], dtype=torch.uint8)
        pixels = grey[:, None, None, None].expand(-1, 8, 8, 3).contiguous()
        images = QueuedImages(pixels, torch.ones(len(batch)), None, [ImageStatistics()] * len(batch))
        return PendingBatch([images], self)

    def wait(self):
        assert self.permits.acquire(timeout=PATIENCE_S)
        self.permits.release()  # once made, it stays so

    def times(self):
        return PhaseTimes(sample=1.0)


def _greys(steps):
    """What the images of finished batches show, by sample."""
    results = [result for step in steps if isinstance(step, Finished) for result in step.results]
    return {
        result.sample_id: np.asarray(Image.open(io.BytesIO(result.image))).max().item() for result in results
    }


def test_batches_begin_while_earlier_ones_are_encoded(monkeypatch):
    device, real = Device(), engine_module.encode_images

    def encode_once_the_third_began(*args):
        assert device.third_began.wait(PATIENCE_S)
        return real(*args)

    monkeypatch.setattr(engine_module, "encode_images", encode_once_the_third_began)
    engine = Engine(device)
    steps = run_batches(engine.begin, engine.plan_batches(_requests(6), 2), overlap=True)
    assert _greys(steps) == {f"s{number}": number for number in range(6)}


def test_a_batch_begins_before_an_earlier_one_has_left_the_device():
    device = Device(permitted=False)
    engine = Engine(device)
    steps = run_batches(engine.begin, engine.plan_batches(_requests(4), 2), overlap=True)
    begun = [next(steps), next(steps)]  # neither is made, for none was permitted
    assert begun == [Beginning(_requests(4)[:2]), Beginning(_requests(4)[2:])]
    device.permits.release()
    assert _greys(steps) == {f"s{number}": number for number in range(4)}


def test_a_batch_too_large_for_the_memory_is_halved_while_others_are_under_way():
    device = Device(most=2)
    engine = Engine(device)
    steps = run_batches(engine.begin, engine.plan_batches(_requests(11)), overlap=True)
    assert _greys(steps) == {f"s{number}": number for number in range(11)}
    assert device.sizes == [4, 2, 2, 2, 2, 2, 1]
    assert engine.usage() == {"out_of_memory": [{"batch_size": 4}], "batch_limit": 2, "flat_batches": 6}


def test_what_fails_at_the_encoder_is_raised_where_the_batch_would_be_given(monkeypatch):
    def fail(*_args):
        raise OSError("no such encoder")

    monkeypatch.setattr(engine_module, "encode_images", fail)
    engine = Engine(Device())
    steps = run_batches(engine.begin, engine.plan_batches(_requests(3), 1), overlap=True)
    assert [type(next(steps)) for _ in range(3)] == [Beginning] * 3
    with pytest.raises(OSError, match="no such encoder"):
        next(steps)
