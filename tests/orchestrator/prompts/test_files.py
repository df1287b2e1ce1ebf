import gzip

import pytest

from toprovar_batch.orchestrator.job.spec import PromptSpec
from toprovar_batch.orchestrator.prompts import files
from toprovar_batch.orchestrator.prompts.files import find_files
from toprovar_batch.orchestrator.prompts.read import read_prompts
from toprovar_batch.worker.errors import PromptSourceError

TEXT = "\ufeffone\r\ntwo\n\n\rthree \u2028 still three\r\r\nvier \U0001f408\n\nlast"


@pytest.fixture(params=[1, 2, 3, 7, 1000])
def block_bytes(request, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_BYTES", request.param)
    return request.param


@pytest.mark.parametrize("ending", ["", "\n", "\r", "\r\n"])
@pytest.mark.parametrize("name", ["prompts.txt", "prompts.txt.gz"])
def test_blocks_have_the_lines_of_the_whole_text(tmp_path, block_bytes, name, ending):
    raw = (TEXT + ending).encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    [file] = find_files(str(tmp_path / name))
    in_blocks = [line for block in file.line_blocks() for line in block]
    whole = file.lines()
    assert in_blocks == (whole if whole[-1] else whole[:-1])


def test_a_text_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_BLOCK_BYTES", 100)
    (tmp_path / "prompts.txt").write_text("".join(f"prompt {number}\n" for number in range(1000)))
    [file] = find_files(str(tmp_path / "prompts.txt"))
    assert max(map(len, file.line_blocks())) <= 15
    prompts = read_prompts(PromptSpec(source=str(tmp_path / "prompts.txt"))).whole()["prompt"].to_pylist()
    assert prompts == [f"prompt {number}" for number in range(1000)]


def test_the_line_that_is_no_text_is_named_in_any_block(tmp_path, block_bytes):
    (tmp_path / "prompts.txt").write_bytes(b"one\r\ntwo\n\nfour \xff\nfive\n")
    with pytest.raises(PromptSourceError, match=r"prompts\.txt, line 4: not UTF-8 text$"):
        read_prompts(PromptSpec(source=str(tmp_path / "prompts.txt")))


def test_a_limit_holds_over_blocks_and_files(tmp_path, block_bytes):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "b.txt").write_text("three\nfour\nfive\n")
    read = read_prompts(PromptSpec(source=f"{tmp_path}/*.txt", limit=4)).whole()
    assert read["prompt"].to_pylist() == ["one", "two", "three", "four"]
