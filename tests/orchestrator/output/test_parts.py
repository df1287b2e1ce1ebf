import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import yaml
from datasets import Image, load_dataset

from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.card import dataset_card
from toprovar_batch.orchestrator.output.folder import PLAN_COLUMNS, open_output
from toprovar_batch.orchestrator.output.parts import Findings, read_footers, verify_parts
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.orchestrator.run.summary import time_lines, total
from toprovar_batch.worker.errors import OutputFolderError
from toprovar_batch.worker.part_file import PartWriter, dataset_schema, result_rows
from toprovar_batch.worker.shard_stats import OTHER_ERRORS, ShardStats

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)


def publish(folder, plan, schema, shard_id, num_rows=None):
    samples = plan.shard(shard_id).slice(0, num_rows)
    results = [
        {"status": "ok", "image": {"bytes": PIXEL, "path": "x.png"}, "keep_ratio": [1.0]}
    ] * samples.num_rows
    rows = result_rows(samples, results, schema)
    stats = ShardStats()
    stats.add_rows(rows)
    with PartWriter(folder.part_url(shard_id, plan.num_shards), schema, folder.scratch) as part:
        part.write(rows)
        part.publish(stats.to_json())


@pytest.fixture
def output(write_job):
    """An open folder of a job of two shards, both published."""
    job = load_job(write_job())
    plan = plan_job(job)
    schema = dataset_schema(field for field in plan.samples.schema if field.name not in PLAN_COLUMNS)
    with open_output(job, plan, schema) as folder:
        for shard_id in range(plan.num_shards):
            publish(folder, plan, schema, shard_id)
        yield SimpleNamespace(folder=folder, plan=plan, schema=schema)


def test_load_dataset_reads_the_folder(output, tmp_path):
    files = f"{output.folder.path}/data/*.parquet"
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert data.num_rows == 8
    assert isinstance(data.features["image"], Image)
    assert data[0]["image"].size == (1, 1)
    assert set(data.column_names) == set(output.schema.names)


def test_footers_add_up(output):
    parts = read_footers(output.folder, [0, 1], 2)
    assert (parts.damaged, parts.unreachable) == ({}, {})
    assert (total(parts.good.values()).rows, total(parts.good.values()).ok) == (8, 8)


def test_whole_parts_verify(output):
    assert verify_parts(output.folder, [0, 1], 2) == Findings(good={0: None, 1: None})


@pytest.mark.parametrize(
    ("damage", "seen_in_footer"),
    [
        (lambda content: b"", True),
        (lambda content: content[: len(content) // 2], True),
        (lambda content: content.replace(PIXEL, b"X" * len(PIXEL), 1), False),
    ],
    ids=["emptied", "cut", "flipped"],
)
def test_a_damaged_part_is_found(output, tmp_path, damage, seen_in_footer):
    path = tmp_path / "out/data/part-00001-of-00002.parquet"
    path.write_bytes(damage(path.read_bytes()))
    verified = verify_parts(output.folder, [0, 1], 2)
    assert (list(verified.damaged), verified.unreachable) == ([1], {})
    assert list(read_footers(output.folder, [0, 1], 2).damaged) == ([1] if seen_in_footer else [])


class FailingFile:
    """Opens, and then times out at every read."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)

    def read(self, _size=-1):
        raise TimeoutError("no answer for 60 seconds")


def storage_that_fails(monkeypatch, output, failing):
    """Make the folder's file system fail for one part."""
    whole = type(output.folder.filesystem).open

    def open_file(filesystem, path, mode):
        if path.endswith("part-00001-of-00002.parquet"):
            return failing(whole(filesystem, path, mode))
        return whole(filesystem, path, mode)

    monkeypatch.setattr(type(output.folder.filesystem), "open", open_file)


def refuse(file):
    file.close()
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    ("failing", "reason"),
    [(FailingFile, "no answer for 60 seconds"), (refuse, "[Errno 13] Permission denied")],
    ids=["read", "open"],
)
def test_a_part_that_the_storage_does_not_give_now_is_not_called_damaged(
    output, monkeypatch, failing, reason
):
    storage_that_fails(monkeypatch, output, failing)
    for findings in (read_footers(output.folder, [0, 1], 2), verify_parts(output.folder, [0, 1], 2)):
        assert (list(findings.good), findings.damaged) == ([0], {})
        assert findings.unreachable == {1: reason}


@pytest.mark.parametrize("spoil", [lambda plan: plan.unlink(), lambda plan: plan.write_bytes(b"PAR1")])
def test_without_the_plan_no_part_is_called_damaged(output, tmp_path, spoil):
    spoil(tmp_path / "out/_job/samples.parquet")
    with pytest.raises(OutputFolderError, match=r"the plan _job/samples\.parquet cannot be read"):
        verify_parts(output.folder, [0, 1], 2)


def test_the_plan_is_read_once_for_all_parts(output, monkeypatch):
    opened = Counter()
    whole = type(output.folder.filesystem).open

    def count(filesystem, path, mode):
        opened[path.rpartition("/")[2]] += 1
        return whole(filesystem, path, mode)

    monkeypatch.setattr(type(output.folder.filesystem), "open", count)
    verify_parts(output.folder, [0, 1], 2)
    assert opened["samples.parquet"] == 1


def test_a_plan_of_another_number_of_shards_is_refused(output):
    with pytest.raises(OutputFolderError, match="has 2 shards and the job 3"):
        verify_parts(output.folder, [0, 1], 3)


def test_a_part_with_a_missing_row_is_found(output):
    publish(output.folder, output.plan, output.schema, 0, num_rows=3)
    damaged = verify_parts(output.folder, [0, 1], 2).damaged
    assert damaged == {0: "its 3 rows are not the 4 samples of its shard, with their seeds"}


def test_a_part_of_other_samples_is_found(output, tmp_path):
    data = tmp_path / "out/data"
    (data / "part-00000-of-00002.parquet").replace(data / "part-00001-of-00002.parquet")
    assert list(verify_parts(output.folder, [1], 2).damaged) == [1]


def test_a_column_type_without_a_short_form_leaves_the_types_to_the_parts(output, write_job):
    job = load_job(write_job())
    header = lambda schema: yaml.safe_load(dataset_card(job, schema, 8).split("---")[1])  # noqa: E731
    assert "dataset_info" in header(output.schema)
    nested = output.schema.append(pa.field("nested", pa.struct([("a", pa.int64())])))
    assert "dataset_info" not in header(nested)


def test_errors_are_counted_by_sentence_up_to_a_limit():
    schema = dataset_schema([])
    rows = [{"sample_id": f"s{i}", "status": "error", "error": f"error {i % 30}"} for i in range(90)]
    stats = ShardStats()
    stats.add_rows(pa.Table.from_pylist(rows, schema=schema))
    assert stats.error_kinds["error 0"].count == 3
    assert sum(kind.count for kind in stats.error_kinds.values()) == 90
    assert stats.error_kinds[OTHER_ERRORS].count == 30
    assert ShardStats.from_json(stats.to_json()) == stats


def test_start_scales_are_counted_and_told():
    rows = [
        {"sample_id": "a", "status": "ok", "pruning_start_scale": 7, "keep_ratio": [1.0] * 10},
        {"sample_id": "b", "status": "ok", "pruning_start_scale": 10, "keep_ratio": [1.0] * 10},
        {"sample_id": "c", "status": "ok", "pruning_start_scale": 7, "keep_ratio": [1.0] * 10},
        {"sample_id": "d", "status": "ok"},
        {"sample_id": "e", "status": "error", "error": "no"},
    ]
    stats = ShardStats()
    for fraction, row in zip((0.5, 1.0, 0.25, None, None), rows, strict=True):
        table = pa.Table.from_pylist([row | {"token_layer_fraction": fraction}], schema=dataset_schema([]))
        shard = ShardStats()
        shard.add_rows(table)
        stats.merge(ShardStats.from_json(shard.to_json()))
    assert stats.pruning_start_scales == {"7": 2, "none": 1}
    saved, starts = list(time_lines(stats))[1:]
    assert saved == "token-layers saved by the policy: 41.7%"
    assert starts == "pruning starts at scale 7 in 2 images, none in 1"


def test_the_card_explains_every_column(write_job):
    def lines(*overrides):
        job = load_job(write_job(), overrides)
        schema = dataset_schema([pa.field("prompt_id", pa.string()), pa.field("category", pa.string())])
        card = dataset_card(job, schema, 8)
        return schema, card, [line.split("|")[1:4] for line in card.splitlines() if line.startswith("| `")]

    schema, card, table = lines()
    assert [cells[0].strip(" `") for cells in table] == schema.names
    own = [cells[0].strip(" `") for cells in table if "from the prompt source" in cells[2]]
    assert own == ["category"]
    assert "np.frombuffer" not in card
    assert "np.frombuffer" in lines("policy={name: toprovar, pruning_map: true}")[1]


@pytest.mark.parametrize("name", ["a`b | <script>\n# head\x1b[31m", "http://u:S3cret@h/x", "back\\slash"])
def test_a_column_of_any_name_is_one_row_of_the_card(write_job, name):
    kind = pa.struct([(name, pa.int64())])
    card = dataset_card(load_job(write_job()), dataset_schema([pa.field(name, kind)]), 8)
    (line,) = [line for line in card.splitlines() if "from the prompt source" in line]
    assert line.startswith("| <code>")
    assert line.count("|") == 4
    assert "\x1b" not in card
    assert not {"<script", "`", "\\", "S3cret"} & set(re.findall(r"<script|`|\\|S3cret", line))


def test_the_lines_of_the_card_read_the_last_scale_of_a_pruning_map(write_job):
    card = dataset_card(
        load_job(write_job(), ["policy={name: toprovar, pruning_map: true}"]), dataset_schema([]), 8
    )
    code = card.rpartition("```python")[2].partition("```")[0]
    shape, scales = (4, 8), [(1, 2), (2, 4), (4, 8)]
    flat = np.concatenate([np.full(h * w, number, np.uint8) for number, (h, w) in enumerate(scales)])
    flat[-1] = 9
    space = {"good": [{"image": SimpleNamespace(height=64, width=128), "pruning_map": flat.tobytes()}]}
    exec(code, space)
    assert space["layers"].shape == shape
    assert space["layers"].ravel().tolist() == [2] * 31 + [9]
