"""Whatever becomes of a part's bytes, it is noticed, or nothing of what the part says has changed."""

import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from toprovar_batch.worker.part_file import PartWriter, dataset_schema, read_stats, result_rows
from toprovar_batch.worker.part_identity import PartOwner, check_part
from toprovar_batch.worker.part_reader import DAMAGE, UnreachableError, open_parquet
from toprovar_batch.worker.shard_stats import ShardStats

EXAMPLES = settings(derandomize=True, deadline=None, database=None, max_examples=150)
SCHEMA = dataset_schema([pa.field("category", pa.string())])
OWNER = PartOwner("job", SCHEMA)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def write(path, extra):
    """A part of three rows, and what its footer says beside them."""
    samples = pa.table(
        {
            "sample_id": ["a", "b", "c"],
            "prompt": ["a cat", "two cats", None],
            "negative_prompt": pa.nulls(3, pa.string()),
            "seed": [1, 2, 3],
            "h_div_w": [1.0] * 3,
            "category": ["x", None, "y"],
        }
    )
    image = {"bytes": bytes(range(256)) * 4, "path": "a.png"}
    made = {"status": "ok", "image": image, "width": 1, "height": 1, "format": "png", "attempt": 1}
    rows = result_rows(samples, [made, made, {"status": "error", "error": "no"}], SCHEMA)
    stats = ShardStats(job=OWNER.job)
    stats.add_rows(rows)
    with PartWriter(str(path), SCHEMA) as part:
        part.write(rows)
        part.publish({**extra, "shard_id": 0, **stats.to_json()})


def read(path):
    """All that a reader learns from a part."""
    with open_parquet(LocalFileSystem(), str(path)) as part:
        stats = check_part(part, OWNER, 0)
        return stats, part.read().to_pylist()


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """A whole part."""
    path = tmp_path_factory.mktemp("parts") / "part.parquet"
    write(path, {})
    return path


@settings(EXAMPLES, max_examples=30)
@given(extra=st.dictionaries(st.text().map("x-{}".format), JSON, max_size=4))
def test_what_a_footer_says_is_read_back_equal(part, extra):
    path = part.with_name("round.parquet")
    write(path, extra)
    with open_parquet(LocalFileSystem(), str(path)) as opened:
        record = read_stats(opened.metadata)
    assert {name: record[name] for name in extra} == extra
    assert read(path) == read(part)


@EXAMPLES
@given(data=st.data())
def test_changed_bytes_are_noticed_or_change_nothing(part, data):
    content = bytearray(part.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        # Half of them in the footer, which no page checksum covers.
        place = data.draw(
            st.integers(0, len(content) - 1) | st.integers(len(content) - 3000, len(content) - 1)
        )
        content[place] ^= data.draw(st.integers(1, 255))
    check(part, content)


@EXAMPLES
@given(data=st.data())
def test_a_part_that_is_cut_off_is_noticed(part, data):
    content = part.read_bytes()
    path = part.with_name("cut.parquet")
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DAMAGE):
        read(path)


def check(part, content):
    path = part.with_name("damaged.parquet")
    path.write_bytes(content)
    try:
        found = read(path)
    except (*DAMAGE, UnreachableError):
        return
    assert found == read(part)
