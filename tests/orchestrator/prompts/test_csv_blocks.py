import csv
import io

import pytest

from toprovar_batch.orchestrator.job.spec import PromptSpec
from toprovar_batch.orchestrator.prompts import csv_blocks, files, read
from toprovar_batch.orchestrator.prompts.csv_blocks import unclosed_quote
from toprovar_batch.orchestrator.prompts.files import find_files
from toprovar_batch.worker.errors import PromptSourceError

HEAD = "prompt,id,x\n"


def column(*values):
    return HEAD + "".join(f"prompt {number},i{number},{value}\n" for number, value in enumerate(values))


PLAIN = {
    "texts": column(*["calm"] * 20),
    "whole numbers": column(*range(20)),
    "numbers": column(1.5, *range(20)),
    "dates": column(*["2026-11-29"] * 20),
    "truth": column("true", "false", "true"),
    "nulls alone": column("", "NA", ""),
    "nulls among numbers": column(1, "", 3, "", "", "", "", "", 9),
    "windows": column(1, 2, 3).replace("\n", "\r\n"),
    "old macs": column(1, 2, 3).replace("\n", "\r"),
    "a byte order mark": "\ufeff" + column(1, 2),
    "quotes": HEAD + '"one, ""two""\nthree",a,1\nfour,b,2\n',
    "blank and missing prompts": HEAD + ",a,1\n  ,b,2\nc,c,3\n",
    "no end of line": HEAD + "a,b,1",
}
NOT_PLAIN = {
    "texts after numbers": column(*range(9), "x"),
    "numbers after whole numbers": column(*range(9), 1.5),
    "a value after nulls": column(*[""] * 9, 7),
    "beyond 64 bits": column(1.0, 2**70),
    "a row with too few fields": column(1, 2) + "a,b\n" + "c,d,3\n",
    "a row with too many fields": column(1, 2) + "a,b,3,4\n",
    "an open quote": column(1, 2) + 'a,"b,3\n' + "c,d,4\n",
    "nothing": "",
    "white space": " \n\n",
}
SAME = {"header alone": HEAD, "a name twice": "prompt,x,x\na,1,2\n", "an id twice": HEAD + "a,i,1\nb,i,2\n"}
CASES = PLAIN | NOT_PLAIN | SAME


def read_or_refuse(spec):
    try:
        return read.read_prompts(spec).whole()
    except PromptSourceError as error:
        return str(error)


@pytest.fixture(params=[40, 100_000])
def block_bytes(request, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_BYTES", request.param)
    monkeypatch.setattr(csv_blocks, "_BLOCK_BYTES", request.param)
    return request.param


def compare(spec, monkeypatch):
    in_blocks = read_or_refuse(spec)
    monkeypatch.setattr(read, "spooled_csv", lambda *_: None)
    whole = read_or_refuse(spec)
    assert in_blocks == whole
    if not isinstance(whole, str):
        assert in_blocks.schema == whole.schema


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("case", CASES)
def test_rows_and_errors_in_blocks_are_those_of_the_whole(tmp_path, monkeypatch, block_bytes, case, limit):
    (tmp_path / "a.csv").write_bytes(CASES[case].encode())
    compare(PromptSpec(source=str(tmp_path / "a.csv"), limit=limit), monkeypatch)


def test_files_with_other_columns_and_bytes_that_are_no_text(tmp_path, monkeypatch, block_bytes):
    (tmp_path / "a.csv").write_text("prompt,n\na,1\nb,2\n")
    (tmp_path / "b.csv").write_text("n,mood,prompt\n1.5,calm,c\n")
    compare(PromptSpec(source=str(tmp_path)), monkeypatch)
    monkeypatch.undo()
    (tmp_path / "c.csv").write_bytes(b"prompt\nd\n\xff\n")
    compare(PromptSpec(source=str(tmp_path)), monkeypatch)


@pytest.mark.parametrize("case", PLAIN | NOT_PLAIN)
def test_plain_columns_are_read_in_blocks_and_others_as_a_whole(tmp_path, monkeypatch, case):
    monkeypatch.setattr(csv_blocks, "_BLOCK_BYTES", 64)
    (tmp_path / "a.csv").write_bytes(CASES[case].encode())
    [file] = find_files(str(tmp_path / "a.csv"))
    assert (csv_blocks.spooled_csv(file, ["prompt", "id"], None) is not None) == (case in PLAIN)


@pytest.mark.parametrize(
    ("text", "line"),
    [('a,b\n"x","y"\n', None), ('a,b\nc,d\n"x\ny","z\n', 3), ('a\n"b"c\n', 2), ("", None)],
)
def test_an_open_quote_is_found_and_the_limit_of_others_stays(text, line):
    before = csv.field_size_limit()
    assert unclosed_quote(io.StringIO(text, newline="")) == line
    assert unclosed_quote(io.StringIO('"' + "x" * (before + 1) + '"')) is None
    assert csv.field_size_limit() == before
