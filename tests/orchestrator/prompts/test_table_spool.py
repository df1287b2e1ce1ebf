"""Large jobs: a plan that goes through files and pieces is the plan that fits into memory."""

import errno

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toprovar_batch.orchestrator.job.spec import JobSpec
from toprovar_batch.orchestrator.output import frozen
from toprovar_batch.orchestrator.output.folder import open_output
from toprovar_batch.orchestrator.output.parts import _planned_samples
from toprovar_batch.orchestrator.prompts import formats, ids, sample_plan, table_spool
from toprovar_batch.orchestrator.prompts.read import read_prompts
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.errors import PromptSourceError
from toprovar_batch.worker.part_file import dataset_schema

TEXTS = [f"prompt {index}" for index in range(20)]


@pytest.fixture
def job(tmp_path):
    """A job of two Parquet files with columns of many kinds, a repeated prompt and a bad one."""

    def make(**keys):
        first = pa.table(
            {
                "prompt": [*TEXTS, "prompt 3", "", None, "prompt 3"],
                "tags": [["a", None], None, []] * 8,
                "kind": pa.array(list("abcdefgh") * 3).dictionary_encode(),
                "own_seed": [None, 5, 2**62] * 8,
            }
        )
        pq.write_table(first, tmp_path / "a.parquet", row_group_size=5)
        pq.write_table(
            pa.table({"prompt": ["ü prompt 3", "prompt 3"], "n": [1, None]}), tmp_path / "b.parquet"
        )
        record = {
            "name": "large",
            "prompts": {"source": f"{tmp_path}/*.parquet", "seed_column": "own_seed"},
            "output": str(tmp_path / "out"),
            "model": {"preset": "tiny"},
            "shard_size": 4,
            "sampling": {"images_per_prompt": 3},
            "image": {"h_div_w": [1.0, 0.5]},
        }
        return JobSpec.model_validate(record | keys)

    return make


@pytest.fixture
def small_limits(monkeypatch):
    """Everything goes to a file, in pieces of a few rows."""

    def set_limits():
        monkeypatch.setattr(table_spool, "MEMORY_BYTES", 100)
        monkeypatch.setattr(table_spool, "MOST_ROWS", 7)
        monkeypatch.setattr(sample_plan, "MOST_ROWS", 5)
        monkeypatch.setattr(sample_plan, "_PIECE_BYTES", 64)
        monkeypatch.setattr(formats, "_ROWS_AT_ONCE", 3)

    return set_limits


@pytest.mark.parametrize("keys", [{}, {"sampling": {"images_per_prompt": 1}, "image": {"h_div_w": 1.0}}])
def test_a_plan_in_files_and_pieces_is_the_plan_in_memory(job, small_limits, keys):
    whole = plan_job(job(**keys))
    small_limits()
    pieces = plan_job(job(**keys))
    assert pieces.spool._file is not None
    assert whole.spool._file is None
    assert pieces.samples.equals(whole.samples)
    assert pieces.schema == whole.schema
    assert pieces.fingerprint == whole.fingerprint
    assert (pieces.warnings, pieces.num_bad_prompts) == (whole.warnings, whole.num_bad_prompts)
    for shard_id in (5, 0, *range(whole.num_shards)):  # a worker that failed is served out of turn
        assert pieces.shard(shard_id).equals(whole.shard(shard_id))


def test_the_plan_file_of_a_job_in_pieces_has_the_bytes_of_one_in_memory(job, small_limits, tmp_path):
    contents = []
    for limited, name in ((False, "whole"), (True, "pieces")):
        if limited:
            small_limits()
        made = job(output=str(tmp_path / name))
        with open_output(made, plan_job(made), dataset_schema([])) as folder:
            contents.append(folder.filesystem.cat_file(folder.inside("_job", "samples.parquet")))
    assert contents[0] == contents[1]
    assert pq.ParquetFile(pa.BufferReader(contents[0])).num_row_groups == plan_job(job()).num_shards


def test_a_plan_of_many_shards_has_few_row_groups_and_still_tells_each_shard(job, monkeypatch):
    monkeypatch.setattr(frozen, "_MOST_ROW_GROUPS", 3)
    monkeypatch.setattr(frozen, "_FEW_ROW_GROUPS", 2)
    plan = plan_job(job())
    with open_output(job(), plan, dataset_schema([])) as folder:
        assert pq.ParquetFile(folder.inside("_job", "samples.parquet")).num_row_groups == 2
        samples_of = _planned_samples(folder, plan.num_shards)
    for shard_id in range(plan.num_shards):
        expected = plan.shard(shard_id).select(["sample_id", "seed"])
        assert samples_of(shard_id).equals(expected)


@pytest.mark.parametrize("collide", [False, True])
def test_a_repeated_id_is_found_across_pieces_even_where_all_hashes_are_equal(
    tmp_path, small_limits, monkeypatch, collide
):
    if collide:
        monkeypatch.setitem(vars(ids), "hash", lambda text: 0)
    small_limits()
    path = tmp_path / "p.parquet"
    spec = JobSpec.model_validate({"prompts": {"source": str(path)}, "output": "out"}).prompts
    names = [f"id{index}" for index in range(20)]
    pq.write_table(pa.table({"prompt": TEXTS, "id": names}), path)
    assert read_prompts(spec).whole()["sample_id"].to_pylist() == names
    pq.write_table(pa.table({"prompt": TEXTS, "id": [*names[:17], "id2", "id2", "id1"]}), path)
    with pytest.raises(PromptSourceError, match=r"row 18: the id 'id2' .* already that of .*row 3"):
        read_prompts(spec)


def test_text_beyond_the_offsets_of_a_column_is_made_in_pieces(job, monkeypatch):
    monkeypatch.setattr(sample_plan, "_PIECE_BYTES", 1)
    table = read_prompts(job().prompts).whole()
    assert sample_plan._rows_at_once(table) == 1
    monkeypatch.setattr(sample_plan, "_PIECE_BYTES", 1 << 30)
    assert sample_plan._rows_at_once(table) == sample_plan.MOST_ROWS
    long = pa.table({"prompt": ["x" * (1 << 20)], "prompt_error": pa.nulls(1, pa.string())})
    assert sample_plan._rows_at_once(long) == 1 << 10


def test_a_temporary_folder_without_room_is_named(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(table_spool, "MEMORY_BYTES", 0)
    monkeypatch.setattr(table_spool.TableSpool, "_spill", full)
    with pytest.raises(PromptSourceError, match=r"No space left on device.*TMPDIR"):
        table_spool.TableSpool.of(pa.table({"prompt": ["a"]}))
