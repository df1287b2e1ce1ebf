import json
import re
import unicodedata
from dataclasses import fields
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image

from toprovar_batch.worker.image_statistics import ImageStatistics
from toprovar_batch.worker.part_file import (
    CHECKSUM,
    RESULT_COLUMNS,
    ROW_GROUP_BYTES,
    SCHEMA_VERSION,
    PartWriter,
    dataset_schema,
    image_path,
    read_stats,
    record_checksum,
    result_rows,
)

PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
    "53de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
PROMPTS = ["a cat", "猫 \u0000 \U0001f408 e\u0301 \u202e \ufffd", "long " * 200_000, "", None]
# Datasets that exist have these columns; none may go, move or change its type.
COLUMNS = [
    ("sample_id", "string"),
    ("prompt", "string"),
    ("negative_prompt", "string"),
    ("seed", "int64"),
    ("h_div_w", "double"),
    ("image", "struct<bytes: binary, path: string>"),
    ("width", "int32"),
    ("height", "int32"),
    ("format", "string"),
    ("status", "string"),
    ("error", "string"),
    ("prompt_truncated", "bool"),
    ("attempt", "int32"),
    ("worker", "string"),
    ("model", "string"),
    ("policy", "string"),
    ("text_ms", "double"),
    ("sample_ms", "double"),
    ("decode_ms", "double"),
    ("encode_ms", "double"),
    ("total_ms", "double"),
    ("batch_size", "int32"),
    ("pruning_start_scale", "int32"),
    ("low_entropy_ratio", "list<item: float>"),
    ("keep_ratio", "list<item: float>"),
    ("layer_representation_score", "list<item: float>"),
    ("token_layer_fraction", "double"),
    ("flops", "double"),
    ("pruning_map", "binary"),
]
PASSTHROUGH = {
    "category": pa.array(["a", None, "c", "d", "e"]),
    "when": pa.array([datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)] * 5, pa.timestamp("ns", "UTC")),
    "tags": pa.array([["x"], [], None, ["y", "z"], ["ü"]]),
    "nested": pa.array([{"a": 1, "b": {"c": 2.5}}] * 5),
}


def make_rows(schema=None, image=PIXEL):
    samples = pa.table(
        {
            "sample_id": [f"id/{row}" for row in range(5)],
            "prompt": PROMPTS,
            "negative_prompt": pa.array([None, "blur", None, None, None], pa.string()),
            "seed": pa.array([0, 1, 2**63 - 1, 3, 4], pa.int64()),
            "h_div_w": [1.0, 1.0, 2.0, 0.5, 1.0],
            "prompt_error": pa.array([None] * 5, pa.string()),
            **PASSTHROUGH,
        }
    )
    ok = {
        "status": "ok",
        "image": {"bytes": image, "path": "x.png"},
        "keep_ratio": [1.0, 0.5],
        "low_entropy_ratio": [None, 0.25],
    }
    results = [ok, ok, ok, {"status": "error", "error": "empty"}, {"status": "error", "error": "not text"}]
    schema = schema or dataset_schema([samples.schema.field(name) for name in PASSTHROUGH])
    return result_rows(samples, results, schema)


def write_part(folder, rows=None, **stats):
    rows = make_rows() if rows is None else rows
    target = folder / "data" / "part-00000-of-00001.parquet"
    with PartWriter(str(target), rows.schema, str(folder / "tmp")) as part:
        part.write(rows)
        size = part.publish(stats)
    assert size == target.stat().st_size
    return target


def test_the_columns_of_a_dataset_stay_what_they_are():
    assert [(field.name, str(field.type)) for field in dataset_schema([])] == COLUMNS
    assert [field.name for field in dataset_schema([pa.field("x", pa.int8())])][2:5] == [
        "negative_prompt",
        "x",
        "seed",
    ]


def test_every_statistic_is_a_column_that_the_documentation_knows(pytestconfig):
    documentation = (pytestconfig.rootpath / "docs/dataset.md").read_text(encoding="utf-8")
    schema = dataset_schema([])
    for statistic in fields(ImageStatistics):
        kind = statistic.metadata["type"]
        assert schema.field(statistic.name).type == kind
        name = {"double": "float64", "list<item: float>": "list of float32"}.get(str(kind), str(kind))
        unit = f" {statistic.metadata['unit']}".rstrip()
        assert f"| `{statistic.name}` | {name} |{unit} | " in documentation
        assert statistic.metadata["meaning"]


def test_statistics_reach_their_columns():
    given = ImageStatistics(low_entropy_ratio=(None, 0.25), flops=2.0, pruning_map=b"ab", batch_size=3)
    samples = pa.table({"sample_id": ["s"], "prompt": ["x"]})
    row = result_rows(samples, [given.columns()], dataset_schema([])).to_pylist()[0]
    assert (row["low_entropy_ratio"], row["keep_ratio"], row["flops"]) == ([None, 0.25], [], 2.0)
    assert (row["pruning_map"], row["batch_size"], row["prompt_truncated"]) == (b"ab", 3, False)


def test_every_row_and_type_reads_back_the_same(tmp_path):
    rows = make_rows()
    read = pq.read_table(write_part(tmp_path, rows))
    assert read.equals(rows)
    assert set(read.column_names) == {*RESULT_COLUMNS, *PASSTHROUGH}


def test_hugging_face_datasets_sees_images_and_nulls(tmp_path):
    data = Dataset.from_parquet(str(write_part(tmp_path)), cache_dir=str(tmp_path / "cache"))
    assert isinstance(data.features["image"], Image)
    assert data[0]["image"].size == (1, 1)
    assert data[3]["image"] is None
    assert data[1]["prompt"] == PROMPTS[1]


def test_duckdb_reads_the_part(tmp_path):
    path = write_part(tmp_path)
    query = f"SELECT count(*), count(image.bytes), max(length(prompt)), sum(seed::hugeint) FROM '{path}'"
    assert duckdb.sql(query).fetchall() == [(5, 3, 1_000_000, 2**63 - 1 + 8)]


def test_stats_stand_in_the_footer(tmp_path):
    metadata = pq.read_metadata(write_part(tmp_path, rows_=5, name="ü"))
    record = read_stats(metadata)
    assert record.pop(CHECKSUM) == record_checksum(record)
    assert record == {"rows_": 5, "name": "ü", "schema_version": SCHEMA_VERSION}


def test_image_bytes_are_stored_as_they_are_and_the_rest_is_compressed(tmp_path):
    group = pq.read_metadata(write_part(tmp_path)).row_group(0)
    codecs = {
        group.column(index).path_in_schema: group.column(index).compression
        for index in range(group.num_columns)
    }
    assert codecs.pop("image.bytes") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}


def test_row_groups_stay_near_their_size(tmp_path):
    rows = make_rows(image=bytes(ROW_GROUP_BYTES // 4)).slice(0, 1)
    target = tmp_path / "part.parquet"
    with PartWriter(str(target), rows.schema, str(tmp_path / "tmp")) as part:
        for _ in range(9):
            part.write(rows)
        part.publish({})
    metadata = pq.read_metadata(target)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [4, 4, 1]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing_behind(tmp_path, failure):
    rows = make_rows()
    target = tmp_path / "data" / "part.parquet"
    part = PartWriter(str(target), rows.schema, str(tmp_path / "tmp"))
    with pytest.raises(failure), part:
        raise part.write(rows) or failure
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_part_replaces_an_earlier_one_and_leaves_no_file_aside(tmp_path):
    write_part(tmp_path, attempt=1)
    path = write_part(tmp_path, attempt=2)
    assert read_stats(pq.read_metadata(path))["attempt"] == 2
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_target_that_cannot_be_written_raises_and_leaves_no_file_aside(tmp_path):
    (tmp_path / "data").write_text("a file where the folder should be")
    with pytest.raises(OSError, match="data"):
        write_part(tmp_path)
    assert not list((tmp_path / "tmp").iterdir())


def test_a_damaged_page_is_noticed(tmp_path):
    path = write_part(tmp_path)
    content = bytearray(path.read_bytes())
    content[content.index(PIXEL) + 40] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize(
    ("sample_id", "image_format", "name"),
    [
        ("a1b2", "png", "a1b2.png"),
        ("a/b c\n.", "jpeg", r"a_b_c__-\w{12}\.jpg"),
        ("../../etc", "webp", r"______etc-\w{12}\.webp"),
        ("猫", "png", r"猫-\w{12}\.png"),
        ("...", "png", r"___-\w{12}\.png"),
        ("猫" * 500, "png", r"猫{66}-\w{12}\.png"),
    ],
)
def test_image_names_are_safe(sample_id, image_format, name):
    path = image_path(sample_id, image_format)
    assert re.fullmatch(name, path)
    assert len(path.encode()) < 255


@pytest.mark.parametrize(
    "ids", [("a/b", "a_b", "a b"), ("x" * 200 + "1", "x" * 200 + "2", "x" * 200), ("...", "..", "image")]
)
def test_different_ids_give_different_image_names(ids):
    assert len({image_path(sample_id, "png") for sample_id in ids}) == 3


def test_no_file_system_shell_or_reader_trips_over_an_images_name():
    ids = [
        "-rf",
        "con",
        "CON",
        "lpt1",
        "A",
        "a",
        "a.b",
        "a_b",
        "..",
        ".",
        "a/b",
        "a\nb",
        "é",
        "e\u0301",
        "x" * 300,
        "\x1b",
        "--",
    ]
    names = [image_path(sample_id, "png") for sample_id in ids]
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(ids)
    for name in names:
        stem, _, extension = name.partition(".")
        assert extension == "png"
        assert re.fullmatch(r"[^\W][\w-]*", stem)
        assert stem not in {"con", "CON", "lpt1"}
        assert len(name.encode()) < 255
    assert image_path("0a-1b_2-hw1.0", "png").startswith("0a-1b_2-hw1_0-")
    assert image_path("0123456789abcdef-2", "jpeg") == "0123456789abcdef-2.jpg"


def test_the_schema_names_the_image_feature():
    features = json.loads(dataset_schema([]).metadata[b"huggingface"])["info"]["features"]
    assert features == {"image": {"_type": "Image"}}
