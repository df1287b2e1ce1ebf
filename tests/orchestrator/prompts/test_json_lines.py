import json

import pytest

from toprovar_batch.orchestrator.job.spec import PromptSpec
from toprovar_batch.orchestrator.prompts import files, json_lines, read
from toprovar_batch.orchestrator.prompts.files import find_files
from toprovar_batch.worker.errors import PromptSourceError

PLAIN = {
    "texts": [{"prompt": f"prompt {number}", "mood": "calm"} for number in range(9)],
    "a column that comes late": [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c", "n": 1}, {"n": 2}],
    "nulls first": [{"prompt": None, "x": None}, {"x": None, "prompt": "a"}, {"prompt": "b", "x": True}],
    "nulls alone": [{"prompt": "a", "x": None}, {"prompt": "b"}],
    "blank and missing prompts": [{"prompt": " "}, {"prompt": "a"}, {"mood": "no prompt"}],
    "ids": [{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "y"}],
    "numbers that mean something": [
        {"prompt": "a", "seed": 7, "ratio": 1.5},
        {"prompt": "b", "seed": -1, "ratio": 9.25},
        {"prompt": "c", "seed": None, "ratio": None},
    ],
}
NOT_PLAIN = {
    "a list": [{"prompt": "a", "tags": ["x"]}, {"prompt": "b", "tags": []}],
    "an object": [{"prompt": "a", "more": {"x": 1}}, {"prompt": "b", "more": {"y": 2}}],
    "a number among prompts": [{"prompt": "a"}, {"prompt": "b"}, {"prompt": 7}],
    "whole numbers, then others": [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2.5}],
    "beyond 64 bits": [{"prompt": "a", "n": 1}, {"prompt": "b", "n": 2**70}],
    "half a character": [{"prompt": "a \ud800"}, {"prompt": "b"}],
    "half a character in a name": [{"prompt": "a", "\ud800": 1}],
    "ids that are numbers": [{"prompt": "a", "id": 1}, {"prompt": "b", "id": 2}],
    "no key": [{}, {"prompt": "a"}],
    "whole numbers, then none": [{"prompt": "a", "seed": 1}, {"prompt": "b", "seed": "seven"}],
}
SPECS = {"numbers that mean something": {"seed_column": "seed", "h_div_w_column": "ratio"}}


def read_or_refuse(spec):
    try:
        return read.read_prompts(spec).whole()
    except PromptSourceError as error:
        return str(error)


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("block_bytes", [8, 1000])
@pytest.mark.parametrize("case", PLAIN | NOT_PLAIN)
def test_rows_in_blocks_are_those_of_the_whole(tmp_path, monkeypatch, case, block_bytes, limit):
    rows = (PLAIN | NOT_PLAIN)[case]
    monkeypatch.setattr(files, "_BLOCK_BYTES", block_bytes)
    middle = len(rows) // 2
    for name, some in (("a.jsonl", rows[:middle]), ("b.jsonl", rows[middle:])):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n\n" for row in some))
    spec = PromptSpec(source=str(tmp_path), limit=limit, **SPECS.get(case, {}))
    in_blocks = read_or_refuse(spec)
    monkeypatch.setattr(read, "plain_rows", lambda *_: None)
    whole = read_or_refuse(spec)
    assert in_blocks == whole
    if not isinstance(whole, str):
        assert in_blocks.schema == whole.schema


@pytest.mark.parametrize("case", PLAIN | NOT_PLAIN)
def test_plain_columns_are_read_in_blocks_and_others_as_a_whole(tmp_path, monkeypatch, case):
    monkeypatch.setattr(files, "_BLOCK_BYTES", 8)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (PLAIN | NOT_PLAIN)[case]))
    found = json_lines.plain_rows(find_files(str(tmp_path / "a.jsonl")), ["prompt", "id", "sample_id"], None)
    assert (found is not None) == (case in PLAIN)
    if found is not None:
        assert len(list(found)) > 1


def test_a_broken_line_of_a_later_block_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_BYTES", 8)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n{"prompt": \n')
    with pytest.raises(PromptSourceError, match=r"a\.jsonl, line 4: broken JSON at column 12"):
        read.read_prompts(PromptSpec(source=str(tmp_path / "a.jsonl")))
