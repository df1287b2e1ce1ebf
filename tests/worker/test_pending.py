"""A queued batch: nothing is read before it has left the device, and its phases are told apart."""

import torch

from toprovar_batch.worker import pending
from toprovar_batch.worker.generated import PhaseTimes
from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.pending import PendingBatch, PhaseClock, QueuedImages


class Device:
    """Stands in for a batch's clock: it fills the copies on the host when it is waited for, and not before."""

    def __init__(self, *parts):
        self.parts = parts

    def wait(self):
        for number, part in enumerate(self.parts, 1):
            part.pixels.fill_(number)
            part.finite[0] = True
            if part.pruning_maps is not None:
                part.pruning_maps.fill_(number)

    def times(self):
        return PhaseTimes(sample=1.0)


def _images(count, with_maps):
    maps = torch.zeros(count, 3, dtype=torch.uint8) if with_maps else None
    statistics = [ImageStatistics(flops=float(number)) for number in range(count)]
    return QueuedImages(
        torch.zeros(count, 4, 5, 3, dtype=torch.uint8), torch.zeros(count, dtype=torch.bool), maps, statistics
    )


def test_nothing_is_read_of_a_batch_before_it_has_left_the_device():
    parts = _images(2, with_maps=True), _images(1, with_maps=True)
    made = PendingBatch(parts, Device(*parts)).result()
    assert made.pixels.shape == (3, 4, 5, 3)
    assert made.pixels[:, 0, 0, 0].tolist() == [1, 1, 2]
    assert made.finite == [True, False, True]
    assert [each.pruning_map for each in made.statistics] == [b"\1\1\1", b"\1\1\1", b"\2\2\2"]
    assert [each.flops for each in made.statistics] == [0.0, 1.0, 0.0]
    assert made.times.sample == 1.0


def test_no_map_is_given_where_none_was_asked_for():
    part = _images(2, with_maps=False)
    made = PendingBatch([part], Device(part)).result()
    assert [each.pruning_map for each in made.statistics] == [None, None]


def test_phases_of_images_in_turn_add_up_and_what_has_no_name_is_in_the_wall_time_alone(monkeypatch):
    readings = iter([0, 1, 2, 4, 8, 16, 17, 19, 23, 31, 40])
    monkeypatch.setattr(pending.time, "perf_counter", lambda: float(next(readings)))
    clock = PhaseClock(torch.device("cpu"))
    for _ in range(2):
        for ended in (None, "text", "sample", "decode"):
            clock.mark(ended)
    clock.mark(None)
    clock.wait()
    assert clock.times() == PhaseTimes(text=2, sample=4, decode=8, wall=40)


def test_on_a_gpu_phases_are_events_of_its_stream_and_only_the_last_is_waited_for(monkeypatch):
    notes, milliseconds = [], iter([0, 10, 40, 45, 46])

    class Event:
        def __init__(self, *, enable_timing, blocking):
            assert enable_timing
            assert blocking

        def record(self, stream):
            self.reached = next(milliseconds)
            notes.append(f"{stream} reaches {self.reached}")

        def synchronize(self):
            notes.append(f"waits for {self.reached}")

        def elapsed_time(self, later):
            return later.reached - self.reached

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    clock = PhaseClock(torch.device("cuda"))
    for ended in (None, "text", "sample", "decode", None):
        clock.mark(ended)
    clock.wait()
    assert notes == [*(f"stream of cuda reaches {time}" for time in (0, 10, 40, 45, 46)), "waits for 46"]
    times = clock.times()
    assert (times.text, times.sample, times.decode) == (0.010, 0.030, 0.005)
