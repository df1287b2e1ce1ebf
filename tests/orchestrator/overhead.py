"""Measures what dispatch costs, with an engine that only takes time.

`python tests/orchestrator/overhead.py job FOLDER` runs a job and says how much of it the engines were busy.
`python tests/orchestrator/overhead.py floor FOLDER` times what a shard cannot do without: Ray's answers, and its part.
"""

import cProfile
import functools
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pyarrow as pa
import ray

from toprovar_batch.orchestrator.run.submission import submit
from toprovar_batch.worker.part_file import PartWriter, dataset_schema, result_rows
from toprovar_batch.worker.request import GenerationResult
from toprovar_batch.worker.shard_stats import ShardStats

_WRITE_EVERY = 50  # calls of `usage` between two writes of a profile


class Made:
    """A batch that a device of one thread makes, behind those that were begun before."""

    def __init__(self, future, batch, image):
        self._future, self._batch, self._image = future, batch, image

    def wait_until_made(self):
        self._future.result()

    def results(self):
        self._future.result()
        return [
            GenerationResult(
                request.sample_id, "ok", image=self._image, width=1024, height=1024, format="png"
            )
            for request in self._batch
        ]


class TimedEngine:
    """Takes a given time for each image, on a device of its own, and notes when.

    Args:
        folder: gets a file for each engine, with a line for each batch: its begin and end on the monotonic clock.
        image_s: seconds for an image.
        image_bytes: of each image, which nothing compresses.
        batch_size: images that are made together.
        profile: whether the worker's calls are profiled, into the same folder.
    """

    def __init__(self, folder, image_s, image_bytes, batch_size, profile=False):
        self._folder, self._image_s, self._batch_size = Path(folder), image_s, batch_size
        self._image = os.urandom(image_bytes)
        self._profile = cProfile.Profile() if profile else None
        self._calls = 0

    def fetch(self, count):
        pass

    def setup(self):
        self._device = ThreadPoolExecutor(1)
        self._log = (self._folder / f"busy-{os.getpid()}.log").open("a", buffering=1)
        if self._profile is not None:
            self._profile.enable()

    def plan_batches(self, requests):
        return [
            requests[start : start + self._batch_size] for start in range(0, len(requests), self._batch_size)
        ]

    def begin(self, batch):
        return Made(self._device.submit(self._make, len(batch)), batch, self._image)

    def describe(self):
        return {"device": "a clock"}

    def usage(self):
        self._calls += 1
        if self._profile is not None and self._calls % _WRITE_EVERY == 0:
            self._profile.dump_stats(self._folder / f"worker-{os.getpid()}.prof")  # which ends it
            self._profile.enable()
        return {}

    def _make(self, images):
        begin = time.monotonic()
        if self._image_s:
            time.sleep(images * self._image_s)
        self._log.write(json.dumps([begin, time.monotonic(), images, time.process_time()]) + "\n")


def write_job(folder, samples, shard_size, workers):
    """Write a job whose shards are of one size; gives its path."""
    (folder / "prompts.txt").write_text("".join(f"prompt {index}\n" for index in range(samples)))
    job = {
        "prompts": {"source": "prompts.txt"},
        "output": str(folder / "out"),
        "shard_size": shard_size,
        "model": {"preset": "tiny"},
        "runtime": {"num_workers": workers, "device": "cpu"},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))  # JSON is YAML
    return str(path)


def tell_busy(folder):
    """Print how busy each engine was from its first batch to its last, and the seconds from the first batch to the last of all."""
    spans = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("busy-*.log"))
    }
    spans = {name: batches for name, batches in spans.items() if batches}
    for name, batches in spans.items():
        whole = batches[-1][1] - batches[0][0]
        busy = sum(end - begin for begin, end, *_ in batches)
        images = sum(batch[2] for batch in batches)
        cores = (batches[-1][3] - batches[0][3]) / whole
        print(f"{name}: {images} images in {whole:.2f} s, device busy {busy / whole:.2%}, {cores:.2f} cores")
    begin = min(batches[0][0] for batches in spans.values())
    end = max(batches[-1][1] for batches in spans.values())
    print(f"from the first batch to the last: {end - begin:.2f} s")


def run_job(folder, samples, shard_size, workers, image_s, image_bytes, batch_size, profile):
    job = write_job(folder, samples, shard_size, workers)
    factory = functools.partial(TimedEngine, str(folder), image_s, image_bytes, batch_size, profile)
    driver, start, cpu = cProfile.Profile(), time.perf_counter(), time.process_time()
    if profile:
        driver.enable()
    summary = submit(job, engine_factory=factory)
    if profile:
        driver.disable()
        driver.dump_stats(folder / "driver.prof")
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(
        f"{summary.finished_shards:,} shards, whole run {seconds:.2f} s, {cpu:.2f} s of a core in the driver"
    )
    tell_busy(folder)


class Answering:
    """An actor that answers as a worker's stream does, and does nothing."""

    def answers(self, count):
        for number in range(count):  # noqa: UP028 - Ray streams generators alone
            yield number


def floor(folder, count):
    """Time what each shard needs: a call, an answer, a part that is written, and one that is on disk."""
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    actor = ray.remote(Answering).remote()
    options = {"num_returns": "streaming", "_generator_backpressure_num_objects": 1}

    def listen(calls, answers):
        for _ in range(calls):
            for reference in actor.answers.options(**options).remote(answers):
                ray.get(reference)

    listen(10, 1)
    for calls, answers in ((count, 1), (count, 3), (1, count)):
        seconds = timed(lambda calls=calls, answers=answers: listen(calls, answers))
        print(f"{calls:,} calls of {answers:,} answers: {1e3 * seconds / calls / answers:.2f} ms an answer")
    ray.shutdown()
    schema = dataset_schema([])
    sample = {"sample_id": ["a"], "prompt": ["b"], "negative_prompt": [""], "seed": [1], "h_div_w": [1.0]}
    rows = result_rows(
        pa.table(sample),
        [{"image": {"bytes": b"x" * 70, "path": "x.png"}, "status": "ok"}],
        schema,
    )

    def write(index):
        with PartWriter(str(folder / f"data/{index}.parquet"), schema, str(folder / "tmp")) as part:
            part.write(rows)
            part.publish(ShardStats().to_json())

    print(f"a part of a row: {1e3 * timed(lambda: [write(index) for index in range(count)]) / count:.2f} ms")
    path = folder / "synced"

    def sync():
        with path.open("wb") as file:
            file.write(b"x" * 5000)
            os.fsync(file.fileno())

    print(f"a file on disk: {1e3 * timed(lambda: [sync() for _ in range(count)]) / count:.2f} ms")


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@click.command()
@click.argument("what", type=click.Choice(["job", "floor"]))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--samples", default=2000, show_default=True, help="Of the job, or calls to time.")
@click.option("--shard-size", default=1, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--image-s", default=0.0, show_default=True, help="Seconds an engine takes for an image.")
@click.option("--image-bytes", default=1000, show_default=True)
@click.option("--batch-size", default=4, show_default=True)
@click.option("--profile", is_flag=True, help="Keep profiles of driver and workers in the folder.")
def main(what, folder, samples, shard_size, workers, image_s, image_bytes, batch_size, profile):
    folder.mkdir(parents=True)
    if what == "floor":
        floor(folder, samples)
    else:
        run_job(folder, samples, shard_size, workers, image_s, image_bytes, batch_size, profile)


if __name__ == "__main__":
    main()
