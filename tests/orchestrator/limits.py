"""Measures how large a job may be: `python tests/orchestrator/limits.py plan FOLDER`, or `footers FOLDER`.

`plan` writes a file of prompts (`--form`), plans them and opens the output. `footers` publishes small parts, and reads
what their footers say. Each part runs in a process of its own, whose peak of resident memory is printed.
"""

import multiprocessing
import resource
import time
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output.folder import locate_output, open_output
from toprovar_batch.orchestrator.output.parts import read_footers
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.part_file import PartWriter, dataset_schema
from toprovar_batch.worker.shard_stats import ShardStats

WORDS = (
    "red",
    "blue",
    "green",
    "cube",
    "sphere",
    "cone",
    "table",
    "light",
    "morning",
    "forest",
    "river",
    "glass",
)
ROWS = 200_000  # of prompts that are made at once


LINES = {"txt": "{}\n", "csv": '"{}",calm,7\n', "jsonl": '{{"prompt": "{}", "mood": "calm", "n": 7}}\n'}


def make_prompts(count):
    for start in range(0, count, ROWS):
        yield [
            f"prompt {index}: a {WORDS[index % 12]} {WORDS[index // 12 % 12]} beside a "
            f"{WORDS[index // 144 % 12]} {WORDS[index * 7 % 12]} in soft light"
            for index in range(start, min(count, start + ROWS))
        ]


def write_prompts(path, count, form):
    if form == "parquet":
        with pq.ParquetWriter(path, pa.schema({"prompt": pa.string()})) as writer:
            for prompts in make_prompts(count):
                writer.write_table(pa.table({"prompt": prompts}))
        return
    with Path(path).open("w", encoding="utf-8") as file:
        file.write("prompt,mood,n\n" if form == "csv" else "")
        for prompts in make_prompts(count):
            file.write("".join(map(LINES[form].format, prompts)))


def plan(prompts, output, shard_size):
    job = JobSpec.model_validate(
        {
            "name": "limits",
            "prompts": {"source": prompts},
            "output": output,
            "shard_size": shard_size,
            "model": {"preset": "tiny"},
        }
    )
    start = time.perf_counter()
    planned = plan_job(job)
    print(f"planned {planned.num_samples:,} samples after {time.perf_counter() - start:.1f} s")
    with open_output(job, planned, dataset_schema([])):
        print(f"output open after {time.perf_counter() - start:.1f} s, {planned.num_shards:,} shards")
    start = time.perf_counter()
    rows = sum(planned.shard(shard_id).num_rows for shard_id in range(planned.num_shards))
    print(f"every shard taken, {rows:,} samples, in {time.perf_counter() - start:.1f} s")
    tell_memory()


def footers(output, count):
    folder = locate_output(output)
    start = time.perf_counter()
    found = read_footers(folder, folder.finished(count), count)
    print(f"{len(found.good):,} footers read in {time.perf_counter() - start:.1f} s")
    tell_memory()


def tell_memory():
    print(f"peak of resident memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def write_parts(output, count):
    schema = dataset_schema([])
    for shard_id in range(count):
        target = f"{output}/data/part-{shard_id:05d}-of-{count:05d}.parquet"
        with PartWriter(target, schema, f"{output}/_job/tmp") as writer:
            writer.seal(ShardStats(attempt=1, worker="here:1").to_json())
            writer.show()


def alone(function, *arguments):
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


@click.command()
@click.argument("what", type=click.Choice(["plan", "footers"]))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--count", default=10_000_000, show_default=True, help="Prompts, or parts.")
@click.option("--shard-size", default=100, show_default=True)
@click.option("--form", type=click.Choice(["parquet", *LINES]), default="parquet", show_default=True)
def main(what, folder, count, shard_size, form):
    folder.mkdir(parents=True)
    if what == "plan":
        prompts = str(folder / f"prompts.{form}")
        alone(write_prompts, prompts, count, form)
        alone(plan, prompts, str(folder / "output"), shard_size)
    else:
        alone(write_parts, str(folder / "output"), count)
        alone(footers, str(folder / "output"), count)


if __name__ == "__main__":
    main()
