"""Whatever rows a prompt file holds, they are read back equal, or refused in one sentence."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toprovar_batch.orchestrator.job.spec import PromptSpec
from toprovar_batch.orchestrator.prompts.read import read_prompts
from toprovar_batch.worker.errors import PromptSourceError

EXAMPLES = settings(derandomize=True, deadline=None, database=None, max_examples=25)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
# What has broken readers: quotes, separators, ends of lines of every kind, marks of byte order.
HARD = st.text(st.sampled_from("a,\"'\n\r\t\\{}\ufeff\u2028\x85\0 é猫"), max_size=12)
ROWS = st.lists(st.fixed_dictionaries({"prompt": TEXTS | HARD, "note": TEXTS | HARD}), min_size=1, max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def as_jsonl(rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def as_jsonl_unescaped(rows):
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def as_csv(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["prompt", "note"], quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows):
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


FORMATS = {
    "p.jsonl": as_jsonl,
    "q.jsonl": as_jsonl_unescaped,
    "p.csv": as_csv,
    "p.parquet": as_parquet,
    "p.jsonl.gz": lambda rows: gzip.compress(as_jsonl(rows)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where files of all examples lie, each over the one before."""
    return tmp_path_factory.mktemp("prompts")


def read(path, content):
    """The table of a prompt file, or None where it is refused in a sentence."""
    path.write_bytes(content)
    try:
        return read_prompts(PromptSpec(source=str(path))).whole()
    except PromptSourceError as error:
        found = str(error)
    assert found.strip()
    assert "\n" not in found
    return None


@pytest.mark.parametrize("name", FORMATS)
@EXAMPLES
@given(rows=ROWS)
def test_rows_are_read_back_equal_or_refused(folder, name, rows):
    table = read(folder / name, FORMATS[name](rows))
    if table is None:
        return
    assert table.num_rows == len(rows)
    for row, prompt, error in zip(
        rows, table["prompt"].to_pylist(), table["prompt_error"].to_pylist(), strict=True
    ):
        assert prompt == row["prompt"] or error is not None
    if name != "p.csv":  # where the types of other columns are guessed
        assert table["note"].to_pylist() == [row["note"] for row in rows]


@EXAMPLES
@given(
    lines=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1), min_size=1
    )
)
def test_lines_are_read_back_equal_or_refused(folder, lines):
    table = read(folder / "p.txt", "\n".join(lines).encode())
    if table is not None:
        wanted = [line.strip() for line in lines if line.strip()]
        assert [prompt.strip() for prompt in table["prompt"].to_pylist()] == wanted


@EXAMPLES
@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from(["prompt", "seed", "id", "note"]) | TEXTS, JSON), max_size=4
    )
)
def test_any_json_rows_are_a_table_or_a_sentence(folder, rows):
    table = read(folder / "p.jsonl", as_jsonl(rows))
    assert table is None or table.num_rows == len(rows)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "txt", "parquet", "json", "jsonl.gz"])
@EXAMPLES
@given(content=st.binary(max_size=100))
def test_any_bytes_are_a_table_or_a_sentence(folder, ending, content):
    read(folder / f"p.{ending}", content)
