"""Prompt sources: every format and place, and every way in which they can be wrong."""

import bz2
import gzip
import json
import lzma
import os
import sys
from decimal import Decimal
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toprovar_batch.orchestrator.job.spec import JobSpec, PromptSpec
from toprovar_batch.orchestrator.prompts import files as prompt_files
from toprovar_batch.orchestrator.prompts.read import RESERVED_COLUMNS, read_prompts
from toprovar_batch.orchestrator.prompts.sample_plan import plan_samples
from toprovar_batch.orchestrator.prompts.table_spool import TableSpool
from toprovar_batch.worker.errors import PromptSourceError

CATS = ["a cat", "two cats"]


@pytest.fixture
def source(tmp_path):
    """Write a file and give its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        if isinstance(content, dict):
            pq.write_table(pa.table(content), path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def read(path, **keys):
    return read_prompts(PromptSpec(source=path, **keys)).whole()


def error_of(path, **keys):
    with pytest.raises(PromptSourceError) as caught:
        read(path, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def jsonl(*rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows)


FORMATS = {
    "p.txt": "a cat\n\n   \n two cats \r\n",
    "p.jsonl": '{"prompt": "a cat"}\n\n{"prompt": "two cats"}',
    "p.ndjson": '{"prompt": "a cat"}\r\n{"prompt": "two cats"}\r\n',
    "p.csv": 'prompt\n"a cat"\ntwo cats\n',
    "p.parquet": {"prompt": CATS},
    "meta_data.json": '{"x": {"prompt": "a cat"}, "y": {"prompt": "two cats"}}',
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_told_by_its_extension(source, name):
    assert read(source(name, FORMATS[name])).column("prompt").to_pylist() == CATS


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zst"])
def test_every_format_may_be_compressed(source, tmp_path, name, suffix):
    source(name, FORMATS[name])
    raw = (tmp_path / name).read_bytes()
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}[suffix]
    assert read(source(f"{name}.{suffix}", compress(raw))).column("prompt").to_pylist() == CATS


def zstd(raw):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(raw)
    return sink.getvalue().to_pybytes()


def test_the_format_can_be_set_and_then_the_extension_does_not_matter(source):
    assert read(source("prompts.list", "a cat\n"), format="txt").num_rows == 1
    assert "the extension '.list' does not tell the format; set prompts.format" in error_of(
        source("a.list", "x")
    )
    assert "a name without extension does not tell" in error_of(source("README", "x"))


def test_types_of_passed_columns_stay(source):
    content = {
        "prompt": CATS,
        "n": pa.array([1, None], pa.int16()),
        "tags": [["a"], []],
        "box": [{"x": 1.5}, None],
        "kind": pa.array(["u", "v"]).dictionary_encode(),
    }
    table = read(source("p.parquet", content))
    assert table.column_names == ["prompt", "prompt_error", "n", "tags", "box", "kind"]
    assert table.schema.field("n").type == pa.int16()
    assert table.column("box").to_pylist() == [{"x": 1.5}, None]
    assert pa.types.is_dictionary(table.schema.field("kind").type)


def test_mjhq_keeps_ids_and_categories(source):
    meta = {
        "0a1b": {"category": "people", "prompt": "a cat"},
        "9f": {"category": "art", "prompt": "two cats"},
    }
    table = read(source("meta_data.json", json.dumps(meta)))
    assert table.column("sample_id").to_pylist() == ["0a1b", "9f"]
    assert table.column("category").to_pylist() == ["people", "art"]


def test_columns_choose_what_is_passed_through(source):
    path = source("p.jsonl", jsonl({"prompt": "a cat", "id": 7, "a": 1, "b": 2}))
    assert read(path).column_names == ["prompt", "prompt_error", "sample_id", "a", "b"]
    assert read(path, columns=("b", "id")).column_names == ["prompt", "prompt_error", "sample_id", "b", "id"]
    assert read(path, columns=()).column_names == ["prompt", "prompt_error", "sample_id"]


def test_limit_takes_the_first_rows_over_all_files(source, tmp_path):
    for index in range(3):
        source(f"part-{index}.txt", f"a{index}\nb{index}\n")
    table = read(str(tmp_path / "part-*.txt"), limit=3)
    assert table.column("prompt").to_pylist() == ["a0", "b0", "a1"]


@pytest.mark.parametrize("name", FORMATS)
def test_limit_holds_in_every_format(source, name):
    assert read(source(name, FORMATS[name]), limit=1).column("prompt").to_pylist() == ["a cat"]


def test_a_folder_and_a_glob_are_read_in_order_and_differing_columns_filled(source, tmp_path):
    source("d/b.jsonl", jsonl({"prompt": "two", "n": 1}))
    source("d/a.jsonl", jsonl({"prompt": "one"}))
    source("d/_ignored.jsonl", "broken")
    source("d/README.md", "ignored")
    for where in ("d", "d/[a-b].jsonl"):
        table = read(str(tmp_path / where))
        assert table.column("prompt").to_pylist() == ["one", "two"]
        assert table.column("n").to_pylist() == [None, 1]


def test_parquet_files_of_a_glob_join_where_their_types_allow(source, tmp_path):
    source("a.parquet", {"prompt": ["one"], "n": pa.array([1], pa.int32())})
    source("b.parquet", {"prompt": ["two"], "n": pa.array([2], pa.int64())})
    assert read(str(tmp_path / "*.parquet")).column("n").to_pylist() == [1, 2]
    source("c.parquet", {"prompt": ["three"], "n": ["x"]})
    assert "its files do not fit together" in error_of(str(tmp_path / "*.parquet"))


def test_a_file_whose_name_looks_like_a_glob_is_that_file(source):
    assert read(source("p[1].txt", "a cat")).num_rows == 1


def test_a_folder_whose_name_looks_like_a_glob_is_taken_as_it_is(source, tmp_path):
    source("job [1] *?/b.txt", "a cat")
    source("job 1 x/b.txt", "a dog")
    table = read(str(tmp_path / "job [1] *?" / "*.txt"))
    assert table.column("prompt").to_pylist() == ["a cat"]
    table = read(str(tmp_path / "job ?1? *" / "*.txt"))
    assert table.column("prompt").to_pylist() == ["a cat"]
    table = read(str(tmp_path / "job ? [w-x]" / "*.txt"))
    assert table.column("prompt").to_pylist() == ["a dog"]


def test_urls_are_read_through_fsspec():
    memory = fsspec.filesystem("memory")
    memory.pipe("/mem/p.jsonl.gz", gzip.compress(jsonl({"prompt": "a cat"}).encode()))
    memory.pipe("/mem/q/1.txt", b"one")
    memory.pipe("/mem/q/2.txt", b"two")
    assert read("memory://mem/p.jsonl.gz").num_rows == 1
    assert read("memory://mem/q/*.txt").column("prompt").to_pylist() == ["one", "two"]
    assert error_of("memory://mem/none.txt") == "memory://mem/none.txt: the prompt file does not exist"


def test_prompts_come_over_http_with_a_query_in_the_address(tmp_path, http_folder):
    (tmp_path / "p.jsonl").write_text(jsonl({"prompt": "a cat"}))
    assert read(f"{http_folder}/p.jsonl?download=true").num_rows == 1
    assert "the prompt file does not exist" in error_of(f"{http_folder}/none.jsonl")


@pytest.fixture
def http_folder(tmp_path):
    """A web server on this machine that serves the test's folder."""
    import functools
    import http.server
    import threading

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # ends as soon
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    def no_s3fs(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(prompt_files.fsspec.core, "url_to_fs", no_s3fs)
    assert "s3:// needs another package: pip install toprovar-batch[s3]" in error_of("s3://bucket/p.txt")


def test_an_unknown_protocol_is_an_error():
    assert "foo://x.txt cannot be read: nothing is known of foo://; name a path" in error_of("foo://x.txt")


# What is wrong with a whole source


def test_missing_and_empty_sources(source, tmp_path):
    missing = str(tmp_path / "none.txt")
    assert error_of(missing) == f"{missing}: the prompt file does not exist"
    for name, content in {"e.txt": "", "e.jsonl": "\n\n", "e.csv": "prompt\n", "e.json": "{}", "e.parquet": {"prompt": pa.array([], pa.string())}}.items():  # fmt: skip
        assert "there are no prompts in it" in error_of(source(name, content))
    for name in ("e.csv", "e.txt", "e.jsonl", "e.json", "e.csv.gz"):
        for content in (b"", b"\n \n"):
            path = source(name, gzip.compress(content) if name.endswith(".gz") else content)
            assert error_of(path) == f"{path}: there are no prompts in it"
    assert "no prompt file is there" in error_of(str(tmp_path / "none*.txt"))
    (tmp_path / "folder").mkdir()
    assert "no prompt file is there" in error_of(str(tmp_path / "folder"))


def test_an_empty_csv_beside_others_adds_nothing(source, tmp_path):
    source("d/a.csv", "")
    source("d/b.csv", "prompt,n\na cat,1\n")
    assert read(str(tmp_path / "d")).column("n").to_pylist() == [1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a cat\rtwo cats\r"),
        ("p.jsonl", '{"prompt": "a cat"}\r{"prompt": "two cats"}'),
        ("p.csv", 'prompt\r"a cat"\rtwo cats\r'),
    ],
)
def test_the_line_ends_of_old_macs_end_lines(source, name, content):
    assert read(source(name, content)).column("prompt").to_pylist() == CATS


@pytest.mark.parametrize("name", list(FORMATS))
def test_prompts_come_through_a_pipe(source, name):
    path = source(name, FORMATS[name])
    content = Path(path).read_bytes()
    kind = prompt_files.FORMATS[Path(path).suffix]
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as file:
        file.write(content)
    table = read(f"/dev/fd/{reader}", format=kind)
    os.close(reader)
    assert table.column("prompt").to_pylist() == CATS


def test_a_pipe_does_not_tell_its_format(source):
    assert (
        "standard input: a name without extension does not tell the format; set prompts.format"
        in error_of("-")
    )
    assert error_of("/dev/null", format="txt") == "/dev/null: there are no prompts in it"


@pytest.mark.parametrize("name", ["seed", "h_div_w", "negative_prompt", "Seed"])
def test_a_column_that_could_be_used_is_refused_with_the_key_that_uses_it(source, name):
    message = error_of(source("p.jsonl", jsonl({"prompt": "x", name: 1})))
    assert f"use it with prompts.{name.lower()}_column: {name}, rename it, or leave it out" in message


def test_a_folder_of_several_formats_is_refused(source, tmp_path):
    source("d/a.txt", "x")
    source("d/b.csv", "prompt\nx")
    assert "holds files of several formats (txt, csv); name one kind with a glob" in error_of(
        str(tmp_path / "d")
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.parquet", b"a cat\n", "p.parquet is not a readable Parquet file: "),
        ("p.parquet", b"", "p.parquet is not a readable Parquet file: "),
        ("p.jsonl", b"PAR1\x00", "p.jsonl holds Parquet data, not .jsonl"),
        ("p.txt", gzip.compress(b"a cat", mtime=0), "p.txt holds gzip data, not .txt"),
        ("p.txt.gz", b"a cat", "p.txt.gz is not a whole gzip file"),
        ("p.txt.gz", gzip.compress(b"a cat" * 99, mtime=0)[:-9], "p.txt.gz is not a whole gzip file"),
        ("p.txt.zst", b"a cat", "p.txt.zst is not a whole zstd file"),
        ("p.txt.xz", b"a cat", "p.txt.xz is not a whole xz file"),
        ("p.txt", b"good\nb\xe4d", "p.txt, line 2: not UTF-8 text"),
        ("p.csv", b"prompt\nb\xe4d", "p.csv, line 2: not UTF-8 text"),
        ("p.jsonl", b'{"prompt": "x"}\n{"prompt": ', "p.jsonl, line 2: broken JSON at column 12"),
        ("p.jsonl", b'{"prompt": "x"}\n"y"', "p.jsonl, line 2: expected a JSON object with a prompt, got text"),
        ("p.jsonl", b'[{"prompt": "x"}]', "p.jsonl, line 1: expected a JSON object with a prompt, got a list"),
        ("p.jsonl", b"[" * 100_000, "p.jsonl, line 1: broken JSON"),
        ("p.json", b'{\n"a": {"prompt": "x"},\n}', "p.json: broken JSON at line "),
        ("p.json", b'[{"prompt": "x"}]', "p.json: expected the form of MJHQ-30K"),
        ("p.json", b'{"a": "x"}', "p.json: expected an object with a prompt under 'a', got text"),
        ("p.json", b'{"a": {"prompt": "x"}, "a": {"prompt": "y"}}', "p.json, line 1: the key 'a' is there twice"),
        ("p.json", b'{"a": {"prompt": "x"},\r\n"b": {"prompt": "a\\" {",\r\n"prompt": "y"}}', "p.json, line 3: the key 'prompt' is there twice in one object"),
        ("p.jsonl", b'{"prompt": "x"}\n\n{"prompt": "x", "prompt": "y"}', "p.jsonl, line 3: the key 'prompt' is there twice in one object"),
        ("p.jsonl", b'{"prompt": "x", "n": [{"k": 1, "j": {"k": "}"}, "\\u006b": 2}]}', "p.jsonl, line 1: the key 'k' is there twice in one object"),
        ("p.jsonl", b'{"prompt": "x"}\r"y"', "p.jsonl, line 2: expected a JSON object with a prompt, got text"),
        ("p.txt", b"good\rb\xe4d", "p.txt, line 2: not UTF-8 text"),
        ("p.csv", b"prompt,n\nx,1\ny\n", "p.csv: row 2 has 1 field and the header 2"),
        ("p.csv", b"prompt,n\nx,1\ny, z,3\n", "p.csv: row 2 has 3 fields and the header 2"),
        ("p.csv", b"prompt,n,n\nx,1,2\n", "the column 'n' is there twice"),
        ("p.csv", b'prompt\nx\n"a cat\ntwo\nthree\n', "p.csv, line 3: a quotation mark is not closed"),
        ("p.csv", b'prompt\n"a cat\ntwo\n"three"\n', "p.csv, line 2: a quotation mark is not closed"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_should_be(source, name, content, message):
    assert message in error_of(source(name, content))


def test_a_truncated_parquet_file(source, tmp_path):
    source("p.parquet", {"prompt": [f"cat {index}" for index in range(1000)]})
    whole = (tmp_path / "p.parquet").read_bytes()
    assert "is not a readable Parquet file" in error_of(source("q.parquet", whole[: len(whole) // 2]))


def test_invalid_text_inside_parquet(source):
    broken = pa.array([b"ok", b"b\xe4d"], pa.binary()).view(pa.string())
    assert "is not a readable Parquet file: " in error_of(source("p.parquet", {"prompt": broken}))


def test_an_unknown_column_is_named_with_the_nearest(source):
    path = source("p.csv", "promt,id\nx,1\n")
    assert error_of(path) == f"{path}: there is no column 'prompt' (prompts.prompt_column), only promt, id; did you mean 'promt'?"  # fmt: skip
    for key in ("id_column", "negative_prompt_column", "h_div_w_column", "seed_column"):
        assert f"no column 'zz' (prompts.{key})" in error_of(path, prompt_column="promt", **{key: "zz"})
    assert "no column 'zz' (prompts.columns)" in error_of(path, prompt_column="promt", columns=("zz",))


@pytest.mark.parametrize("name", [*sorted(RESERVED_COLUMNS), "STATUS", "Sample_Id"])
def test_a_column_that_the_dataset_needs_for_itself_is_refused_with_the_mend(source, name):
    path = source("p.jsonl", jsonl({"caption": "x", "ok": 1, name: "y"}))
    message = error_of(path, prompt_column="caption", id_column=None)
    assert f"the column '{name}' has the name of a column that the dataset gets itself" in message
    assert "prompts.columns: [ok]" in message
    assert read(path, prompt_column="caption", id_column=None, columns=("ok",)).num_rows == 1


def test_columns_that_differ_in_case_only_are_refused(source):
    path = source("p.jsonl", jsonl({"prompt": "x", "Mood": 1, "mood": 2}))
    assert "the columns 'Mood' and 'mood' differ in upper and lower case only" in error_of(path)
    assert read(path, columns=("mood",)).column_names == ["prompt", "prompt_error", "mood"]


def test_views_become_plain_types_that_rows_can_be_taken_from(source):
    content = {
        "prompt": pa.array(CATS, pa.string_view()),
        "text": pa.array(["a", None], pa.string_view()),
        "raw": pa.array([b"a", b"b"], pa.binary_view()),
        "tags": pa.array([["a"], []], pa.list_(pa.string_view())),
        "nested": pa.array([{"a": "x"}, None], pa.struct([("a", pa.string_view())])),
    }
    table = read(source("p.parquet", content))
    assert [table.schema.field(name).type for name in ("text", "raw")] == [pa.string(), pa.binary()]
    taken = table.take([1, 0]).slice(1).to_pylist()[0]
    assert taken == {"prompt": "a cat", "prompt_error": None, "text": "a", "raw": b"a", "tags": ["a"], "nested": {"a": "x"}}  # fmt: skip


def test_a_type_that_rows_cannot_be_taken_from_is_refused_at_once(source):
    texts = pa.map_(pa.string(), pa.string_view())
    path = source("p.parquet", {"prompt": CATS, "m": pa.array([[("k", "v")], []], texts)})
    assert "the column 'm' cannot be stored in Parquet" in error_of(path)


def test_a_column_of_one_type_that_is_no_text_cannot_be_the_prompt(source):
    assert "p.parquet: the column 'prompt' holds int64, not text" in error_of(
        source("p.parquet", {"prompt": [1, 2]})
    )


def test_a_passed_column_must_fit_parquet(source):
    mixed = source("m.jsonl", jsonl({"prompt": "x", "n": 1}, {"prompt": "y", "n": "one"}))
    assert "the column 'n' holds values of different kinds" in error_of(mixed)
    huge = source("h.jsonl", jsonl({"prompt": "x", "n": [2**70, 0.5]}))
    assert "the column 'n' holds values of different kinds" in error_of(huge)
    half = source("s.jsonl", '{"prompt": "x", "\\ud800": 1}')
    assert r"the column name '\ud800' holds half a character" in error_of(half)
    hollow = source("e.jsonl", jsonl({"prompt": "x", "n": {}}))
    assert "the column 'n' cannot be stored in Parquet" in error_of(hollow)


# What is wrong with single rows


def test_a_bad_row_is_marked_and_the_others_stay(source):
    rows = ["good", None, 5, "", " \t\u3000", ["x"], {"a": 1}, True, "half \ud83d"]
    table = read(source("p.jsonl", jsonl(*({"prompt": prompt} for prompt in rows), {"caption": "none"})))
    assert table.column("prompt").to_pylist() == ["good", None, None, "", " \t\u3000", None, None, None, "half \ufffd", None]  # fmt: skip
    assert table.column("prompt_error").to_pylist() == [
        None,
        "the prompt is missing",
        "the prompt is a number, not text",
        "the prompt is empty",
        "the prompt is empty",
        "the prompt is a list, not text",
        "the prompt is an object, not text",
        "the prompt is true or false, not text",
        "the prompt holds half a character (a lone surrogate)",
        "the prompt is missing",
    ]


def test_a_source_of_bad_rows_only_is_an_error(source):
    path = source("p.jsonl", jsonl({"prompt": ""}, {"prompt": 1}))
    assert error_of(path) == f"{path}: none of its 2 prompts can be used; {path}, row 1: the prompt is empty"


def test_any_unicode_and_a_prompt_of_a_megabyte_pass(source):
    prompts = ["日本語 🎨", "a\u2028b", "nul \x00 inside", "\U0010ffff", "e\u0301", "x" * 2**20]
    assert (
        read(source("p.jsonl", jsonl(*({"prompt": p} for p in prompts)))).column("prompt").to_pylist()
        == prompts
    )
    assert read(source("p.txt", "\n".join(prompts))).column("prompt").to_pylist() == prompts
    lines = "\n".join(f'"{prompt}",1' for prompt in prompts)
    assert read(source("p.csv", f"\ufeffprompt,n\n{lines}")).column("prompt").to_pylist() == prompts


def test_quotes_inside_a_csv_field_and_long_quoted_texts_are_fine(source):
    content = f'prompt,n\na 12" pipe,1\n"{"x" * 2**20}",2\n"",3\n'
    assert read(source("p.csv", content)).column("prompt").to_pylist() == ['a 12" pipe', "x" * 2**20, ""]


def test_csv_texts_stay_texts_and_may_span_lines(source):
    content = 'prompt,id,n\n123,007,1\n"two\nlines, ""quoted""",008,\nNA,9,3\n'
    table = read(source("p.csv", content))
    assert table.column("prompt").to_pylist() == ["123", 'two\nlines, "quoted"', "NA"]
    assert table.column("sample_id").to_pylist() == ["007", "008", "9"]
    assert table.column("n").to_pylist() == [1, None, 3]


def test_whole_numbers_beyond_64_bits_are_kept(source):
    wide = 123456789012345678901234567890
    for path in (
        source("p.jsonl", jsonl({"prompt": "x", "n": wide}, {"prompt": "y", "n": -1}, {"prompt": "z"})),
        source("p.csv", f"prompt,n,f\nx,{wide},1e30\ny,-1,2\nz,,3\n"),
    ):
        table = read(path)
        assert table.column("n").type == pa.decimal128(38, 0)
        assert table.column("n").to_pylist() == [Decimal(wide), Decimal(-1), None]
    assert table.column("f").to_pylist() == [1e30, 2.0, 3.0]
    assert read(source("p.csv", f"prompt,n\nx,{'9' * 39}\n")).column("n").to_pylist() == ["9" * 39]


@pytest.mark.parametrize("values", [[10**38], [2**64, True], [[2**64]]])
def test_whole_numbers_that_cannot_be_kept_are_refused(source, values):
    message = error_of(source("p.jsonl", jsonl(*({"prompt": "x", "n": value} for value in values))))
    assert "the column 'n' holds a whole number of more than 64 bits" in message


@pytest.mark.parametrize(
    "kind", [pa.map_(pa.string(), pa.int32()), pa.list_(pa.map_(pa.string(), pa.string()))]
)
def test_a_column_of_maps_is_refused_with_the_reader_that_cannot_take_it(source, kind):
    message = error_of(source("p.parquet", {"prompt": ["x"], "m": pa.nulls(1, kind)}))
    assert "the column 'm' holds " in message
    assert "which datasets.load_dataset cannot read; leave it out with prompts.columns" in message


def test_times_in_nanoseconds_need_no_pandas(source, monkeypatch):
    kinds = [
        pa.timestamp("ns"),
        pa.timestamp("ns", "UTC"),
        pa.time64("ns"),
        pa.duration("ns"),
        pa.duration("s"),
    ]
    kinds += [pa.list_(kinds[0]), pa.struct([("a", kinds[3])])]
    values = [pa.array([1_001], kind) for kind in kinds[:5]]
    values += [pa.array([[1_001]], kinds[5]), pa.array([{"a": 1_001}], kinds[6])]
    columns = {f"c{index}": value for index, value in enumerate(values)}
    path = source("p.parquet", {"prompt": ["x"], **columns})
    monkeypatch.setitem(sys.modules, "pandas", None)
    table = read(path)
    for name, value in columns.items():
        assert table.column(name).combine_chunks().equals(value)
    job = JobSpec.model_validate({"prompts": {"source": path}, "output": "out"})
    plan = plan_samples(job, TableSpool.of(table))
    later = table.set_column(table.schema.get_field_index("c0"), "c0", pa.array([1_002], kinds[0]))
    assert plan.fingerprint != plan_samples(job, TableSpool.of(later)).fingerprint
    assert "c0" in error_of(path, id_column="c0")
    assert "is not a seed" in error_of(path, seed_column="c0")


def test_lone_surrogates_in_passed_columns_are_replaced(source):
    table = read(
        source("p.jsonl", jsonl({"prompt": "x", "t": ["\udc00", {"k": "ok"}["k"]], "o": {"a": "\ud800"}}))
    )
    assert table.column("t").to_pylist() == [["\ufffd", "ok"]]
    assert table.column("o").to_pylist() == [{"a": "\ufffd"}]


def test_negative_prompts_ratios_and_seeds_are_checked_row_by_row(source):
    rows = [
        {"prompt": "a", "no": "blurry", "r": 1.5, "s": 7},
        {"prompt": "b", "no": None, "r": None, "s": None},
        {"prompt": "c", "no": " ", "r": "0.5", "s": str(2**63 - 1)},
        {"prompt": "d", "no": 5, "r": 1, "s": 1.0},
        {"prompt": "e", "r": 4, "s": 0},
        {"prompt": "f", "r": "wide", "s": 0},
        {"prompt": "g", "r": 1, "s": -1},
        {"prompt": "h", "r": True, "s": 0},
        {"prompt": "i", "r": 1, "s": 1.5},
    ]
    keys = {"negative_prompt_column": "no", "h_div_w_column": "r", "seed_column": "s"}
    table = read(source("p.jsonl", jsonl(*rows)), **keys)
    assert table.column("negative_prompt").to_pylist()[:3] == ["blurry", None, None]
    assert table.column("h_div_w").to_pylist()[:4] == [1.5, None, 0.5, 1.0]
    assert table.column("seed").to_pylist()[:4] == [7, None, 2**63 - 1, 1]
    assert table.column("prompt_error").to_pylist() == [
        None,
        None,
        None,
        "the negative prompt is a number, not text",
        "'4' is not a height over width from 1/3 to 3",
        "'wide' is not a height over width from 1/3 to 3",
        "'-1' is not a seed (a whole number from 0, below 2**63)",
        "'True' is not a height over width from 1/3 to 3",
        "'1.5' is not a seed (a whole number from 0, below 2**63)",
    ]


def test_numbers_beyond_all_bounds_are_bad_rows(source):
    huge = [10**400, -(10**400), "1e999999999", "9" * 400, "sNaN"]
    path = source("p.jsonl", jsonl({"prompt": "x", "n": 1}, *({"prompt": "x", "n": value} for value in huge)))
    for key, what in (("seed_column", "a seed"), ("h_div_w_column", "a height over width")):
        errors = read(path, **{key: "n"}).column("prompt_error").to_pylist()
        assert errors[0] is None
        assert all(f"is not {what}" in error for error in errors[1:])


# Ids


def test_ids_are_found_in_sample_id_or_id_unless_told_otherwise(source):
    both = source("p.jsonl", jsonl({"prompt": "x", "id": 1, "sample_id": "s", "key": "k"}))
    assert read(both).column("sample_id").to_pylist() == ["s"]
    assert read(both, id_column="id", columns=()).column("sample_id").to_pylist() == ["1"]
    assert read(both, id_column="key", columns=()).column("sample_id").to_pylist() == ["k"]
    assert "sample_id" not in read(both, id_column=None, columns=()).column_names


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", None], "row 2: the id in the column 'id' is missing"),
        (["a", " "], "row 2: the id in the column 'id' is missing"),
        ([1.5, 2.5], "row 1: the id in the column 'id' is neither text nor a whole number: 1.5"),
        (["a", "\ud800"], "row 2: the id in the column 'id' is broken text"),
        (["a", "b", "a"], "row 3: the id 'a' in the column 'id' is already that of "),
        ([1, "1"], "row 2: the id '1' in the column 'id' is already that of "),
    ],
)
def test_missing_and_repeated_ids_name_their_rows(source, ids, message):
    path = source(
        "p.jsonl", jsonl(*({"prompt": f"x{index}", "id": value} for index, value in enumerate(ids)))
    )
    assert message in error_of(path)
    assert read(path, id_column=None, columns=()).num_rows == len(ids)


def test_a_repeated_id_names_both_files(source, tmp_path):
    source("a.txt.jsonl", jsonl({"prompt": "x", "id": 1}, {"prompt": "y", "id": 2}))
    source("b.txt.jsonl", jsonl({"prompt": "z", "id": 2}))
    message = error_of(str(tmp_path / "*.jsonl"))
    assert "b.txt.jsonl, row 1: the id '2'" in message
    assert f"already that of {tmp_path / 'a.txt.jsonl'}, row 2;" in message


# S3


@pytest.fixture(scope="module")
def s3_bucket():
    """A bucket of an S3 server on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    fsspec.filesystem("s3", skip_instance_cache=True).mkdir("prompts")
    yield "s3://prompts"
    patch.undo()
    server.stop()


def test_prompts_come_from_s3(s3_bucket):
    filesystem = fsspec.filesystem("s3")
    filesystem.pipe("prompts/d/a.jsonl.gz", gzip.compress(jsonl({"prompt": "one"}).encode()))
    filesystem.pipe("prompts/d/b.jsonl.gz", gzip.compress(jsonl({"prompt": "two"}).encode()))
    assert read(f"{s3_bucket}/d/*.jsonl.gz").column("prompt").to_pylist() == ["one", "two"]
    assert "the prompt file does not exist" in error_of(f"{s3_bucket}/none.jsonl")
