"""Which shards `--retry-errors` makes again, and which it leaves since nothing can help them."""

import json

import pytest

from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.folder import PLAN_COLUMNS, open_output
from toprovar_batch.orchestrator.output.parts import Findings
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.orchestrator.run.shards_to_do import hopeless_shards, shards_to_do
from toprovar_batch.orchestrator.run.submission import submit
from toprovar_batch.worker.part_file import PartWriter, dataset_schema, result_rows
from toprovar_batch.worker.shard_stats import ShardStats


@pytest.fixture
def make_dataset(write_job, tmp_path):
    """Makes a dataset in shards of two in which the prompts that are empty have failed, and those that say so."""

    def make(*prompts):
        source = tmp_path / "prompts.jsonl"
        source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        path, options = write_job(shard_size=2), [f"prompts.source={source}"]
        job = load_job(path, options)
        plan = plan_job(job)
        schema = dataset_schema(field for field in plan.schema if field.name not in PLAN_COLUMNS)
        found = Findings()
        with open_output(job, plan, schema) as folder:
            for shard_id in range(plan.num_shards):
                samples = plan.shard(shard_id)
                records = [
                    {"status": "error", "error": "no"} if prompt in ("", "fails") else {"status": "ok"}
                    for prompt in samples["prompt"].to_pylist()
                ]
                rows = result_rows(samples, records, schema)
                stats = found.good[shard_id] = ShardStats(job=folder.job)
                stats.add_rows(rows)
                with PartWriter(folder.part_url(shard_id, plan.num_shards), schema, folder.scratch) as part:
                    part.write(rows)
                    part.publish({"shard_id": shard_id, **stats.to_json()})
        return path, options, plan, found

    return make


def test_only_parts_of_which_a_failed_row_can_be_helped_are_made_again(make_dataset):
    _, _, plan, parts = make_dataset("a", "b", "a", "", "", "fails", "fails", "c")
    hopeless = hopeless_shards(plan, parts)
    assert hopeless == {1: 1}
    assert shards_to_do(4, parts, retry_errors=True, hopeless=hopeless) == [2, 3]
    assert shards_to_do(4, parts, retry_errors=False) == []


def test_parts_whose_failed_rows_can_never_work_are_left_alone_and_told(make_dataset, tmp_path, capsys):
    path, options, _, _ = make_dataset("a", "", "", "b")
    before = {part: part.stat().st_ino for part in (tmp_path / "out/data").iterdir()}
    summary = submit(path, overrides=options, retry_errors=True)
    assert {part: part.stat().st_ino for part in (tmp_path / "out/data").iterdir()} == before
    assert (summary.is_complete, summary.dataset.errors) == (True, 2)
    told = "--retry-errors: 2 rows in 2 parts can never work, as their prompts cannot be used; these parts are left alone"
    assert told in capsys.readouterr().err.splitlines()
