"""Weights from local paths, URLs and the hub."""

import base64
import errno
import fcntl
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import save_file

from toprovar_batch.worker.errors import CheckpointError
from toprovar_batch.worker.fetch import fetch
from toprovar_batch.worker.reference.scoring import scorer


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPROVAR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def memory():
    file_system = fsspec.filesystem("memory")
    file_system.pipe("/weights/a.bin", b"a")
    file_system.pipe("/weights/shards/index.json", b"{}")
    file_system.pipe("/weights/shards/1.bin", b"one")
    yield file_system
    file_system.rm("/weights", recursive=True)


def test_local_paths_are_taken_as_they_are(tmp_path):
    assert fetch(str(tmp_path / "w.pth")) == tmp_path / "w.pth"


def test_what_comes_with_the_package_is_found_beside_its_code():
    path = fetch("package://worker/reference/scoring/scorer.py")
    assert path.is_absolute()
    assert path.samefile(scorer.__file__)


def test_what_the_package_lacks_is_named():
    with pytest.raises(CheckpointError, match=r"^package://worker/none: not part of this installation"):
        fetch("package://worker/none")


def test_a_url_is_copied_once(memory, monkeypatch):
    path = fetch("memory://weights/a.bin")
    assert path.name == "a.bin"
    assert path.read_bytes() == b"a"
    monkeypatch.setattr(type(memory), "get_file", None)  # a second copy would fail
    assert fetch("memory://weights/a.bin") == path


def test_a_folder_of_shards_keeps_its_names(memory):
    path = fetch("memory://weights/shards")
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"index.json": b"{}", "1.bin": b"one"}


def test_a_failed_copy_leaves_nothing_behind(memory, monkeypatch, tmp_path):
    def broken(_self, _source, place, **_options):
        Path(place).write_bytes(b"half")
        raise OSError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "get_file", broken)
        with pytest.raises(CheckpointError, match="connection lost"):
            fetch("memory://weights/a.bin")
    whole = [
        path
        for path in (tmp_path / "cache").rglob("*")
        if path.name == "a.bin" and "partial" not in path.parts
    ]
    assert not whole
    assert fetch("memory://weights/a.bin").read_bytes() == b"a"


@pytest.mark.parametrize("location", ["memory://weights/none.bin", "nosuch://x/y", "hf://owner"])
def test_what_cannot_be_had_is_named(location):
    with pytest.raises(CheckpointError, match=location):
        fetch(location)


def test_hub_files_come_through_the_hub_cache(monkeypatch, tmp_path):
    asked = {}

    def snapshot(repository, allow_patterns, tqdm_class):
        asked[repository] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert fetch("hf://FoundationVision/Infinity/infinity_8b_weights") == tmp_path / "infinity_8b_weights"
    assert asked == {"FoundationVision/Infinity": ["infinity_8b_weights", "infinity_8b_weights/*"]}


def test_workers_that_start_together_fetch_once(memory, monkeypatch, lock_after_all):
    asked = lock_after_all(8)
    calls = []
    copy = type(memory).get_file

    def counted(self, source, place, **options):
        calls.append(source)
        copy(self, source, place, **options)

    monkeypatch.setattr(type(memory), "get_file", counted)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(fetch, ["memory://weights/shards"] * 8))
    assert len(asked) == 8
    assert len(paths) == 1
    assert len(calls) == 2  # its two files


def test_a_query_does_not_become_part_of_the_name(memory):
    memory.pipe("/weights/q.safetensors?download=true", b"q")
    assert fetch("memory://weights/q.safetensors?download=true").name == "q.safetensors"


class WeightServer(ThreadingHTTPServer):
    """Serves one file on the loopback; `headers` go with every answer."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), WeightHandler)
        self.content, self.headers, self.status = b"first", {}, 200
        self.stated_length = len  # of the content; None: no length is stated
        self.knows_head = True
        self.copies = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/model/w.safetensors?download=true"


class WeightHandler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        if self.server.knows_head:
            self.begin()
        else:
            self.send_error(405)

    def do_GET(self):
        self.server.copies += 1
        self.begin()
        self.wfile.write(self.server.content)

    def begin(self):
        self.send_response(self.server.status)
        headers = {"Content-Type": "application/octet-stream"} | self.server.headers
        if self.server.stated_length is not None:
            headers["Content-Length"] = self.server.stated_length(self.server.content)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = WeightServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)  # ends as soon
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"ETag": '"a"'}, {"ETag": '"b"'}),
        (
            {"Last-Modified": "Sat, 01 Aug 2026 10:00:00 GMT"},
            {"Last-Modified": "Sat, 01 Aug 2026 10:00:01 GMT"},
        ),
        ({"Content-MD5": "a"}, {"Content-MD5": "b"}),
    ],
)
def test_a_file_that_changed_on_its_server_is_copied_anew(server, before, after):
    server.headers = before
    first = fetch(server.url)
    assert (first.name, first.read_bytes()) == ("w.safetensors", b"first")
    assert fetch(server.url) == first
    assert server.copies == 1
    server.content, server.headers = b"other", after  # of the same length
    assert fetch(server.url).read_bytes() == b"other"
    assert first.read_bytes() == b"first"  # another worker may be reading it


def test_an_unchanged_etag_is_an_unchanged_file(server):
    server.headers = {"ETag": '"a"', "Last-Modified": "Sat, 01 Aug 2026 10:00:00 GMT"}
    first = fetch(server.url)
    server.headers["Last-Modified"] = "Sat, 01 Aug 2026 10:00:01 GMT"  # of another mirror
    assert fetch(server.url) == first


def test_a_renewed_signature_finds_the_copy_and_is_in_no_name_of_it(server, tmp_path):
    server.headers = {"ETag": '"a"'}
    signed = [
        f"{server.url}&X-Amz-Date={date}&X-Amz-Signature=S3cr3t{date}" for date in ("20260801", "20260802")
    ]
    first = fetch(signed[0])
    assert fetch(signed[1]) == first
    assert server.copies == 1
    assert not [path for path in (tmp_path / "cache").rglob("*") if "S3cr3t" in str(path)]
    assert fetch(f"{server.url}&id=other") != first  # what may name another file


def test_where_a_server_tells_no_version_any_query_may_name_the_file(server):
    assert fetch(f"{server.url}&key=one").read_bytes() == b"first"
    server.content = b"other"  # of the same length
    assert fetch(f"{server.url}&key=two").read_bytes() == b"other"


def test_a_length_alone_tells_of_a_change(server):
    assert fetch(server.url).read_bytes() == b"first"
    server.content = b"longer"
    assert fetch(server.url).read_bytes() == b"longer"


def test_a_server_that_tells_nothing_is_copied_once(server):
    server.stated_length = None
    first = fetch(server.url)
    server.content = b"other"
    assert fetch(server.url) == first
    assert first.read_bytes() == b"first"


def test_a_server_without_head_is_asked_by_get(server):
    server.knows_head, server.headers = False, {"ETag": '"a"'}
    assert fetch(server.url).read_bytes() == b"first"
    server.content, server.headers = b"other", {"ETag": '"b"'}
    assert fetch(server.url).read_bytes() == b"other"


def test_a_copy_that_is_cut_off_is_not_kept(server, tmp_path):
    server.stated_length = lambda content: len(content) + 4
    with pytest.raises(CheckpointError, match=r"w\.safetensors\?download=true: cannot be fetched \("):
        fetch(server.url)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock"]
    server.stated_length = len
    assert fetch(server.url).read_bytes() == b"first"


def test_a_copy_that_is_shorter_than_its_source_is_not_kept(memory, monkeypatch, tmp_path):
    copy = type(memory).get_file

    def short(self, source, place, **options):
        copy(self, source, place, **options)
        Path(place).write_bytes(Path(place).read_bytes()[:-1])

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "get_file", short)
        with pytest.raises(CheckpointError, match=r"shards: cannot be fetched \(\d of \d bytes arrived"):
            fetch("memory://weights/shards")
    assert not list((tmp_path / "cache").rglob("*.bin"))
    assert fetch("memory://weights/shards").is_dir()


def test_what_a_server_refuses_is_told_with_its_reason(server):
    server.status = 403
    with pytest.raises(CheckpointError, match=r"cannot be fetched \(403, message='Forbidden'"):
        fetch(server.url)


def safetensors(path):
    save_file({"a": torch.arange(100.0)}, path)
    return path.read_bytes()


def zipped(path):
    torch.save({"a": torch.arange(100.0)}, path)
    return path.read_bytes()


def closes_early(server, content, cut):
    """A server that states no length and ends its answer by closing the connection, as some proxies do."""
    server.stated_length, server.content = None, content[:-cut] if cut else content


@pytest.mark.parametrize("cut", [1, 200, 480])
@pytest.mark.parametrize("make", [safetensors, zipped])
def test_a_file_that_says_it_is_longer_is_not_kept_where_no_length_is_stated(server, tmp_path, make, cut):
    content = make(tmp_path / "w")
    closes_early(server, content, cut)
    with pytest.raises(CheckpointError, match="bytes arrived, and the file goes on behind them; try again"):
        fetch(server.url)
    closes_early(server, content, 0)
    assert fetch(server.url).read_bytes() == content


@pytest.mark.parametrize("make", [safetensors, zipped])
@pytest.mark.parametrize("states_length", [True, False])
def test_a_copy_that_is_cut_off_heals(server, tmp_path, make, states_length):
    server.content = make(tmp_path / "w")
    server.stated_length = len if states_length else None
    copy = fetch(server.url)
    with copy.open("rb") as reader:
        copy.write_bytes(server.content[:-1])  # as an earlier version kept it, or a full disk left it
        assert fetch(server.url) == copy
        assert copy.read_bytes() == server.content
        assert reader.read(1) == server.content[:1]
    healed = copy.stat().st_ino
    assert fetch(server.url).stat().st_ino == healed
    assert not list((tmp_path / "cache").rglob("partial*/*"))


def digest_of(content, name="sha256"):
    return base64.b64encode(hashlib.new(name, content).digest()).decode()


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-MD5": digest_of(b"first", "md5")},
        {"Digest": f"SHA-256={digest_of(b'first')}"},
        {"Digest": f"md5={digest_of(b'first', 'md5')}, unixsum=30637"},
    ],
)
def test_what_arrives_has_the_checksum_that_its_server_states(server, headers):
    server.headers, server.content = headers, b"f1rst"
    with pytest.raises(
        CheckpointError, match=r"what arrived has the (md5|sha256) \w+, and not \w+; try again"
    ):
        fetch(server.url)
    server.content = b"first"
    assert fetch(server.url).read_bytes() == b"first"


def test_an_etag_that_looks_like_a_checksum_is_none(server):
    server.headers = {"ETag": f'"{hashlib.md5(b"1790000000.0-5").hexdigest()}"'}  # of time and length
    assert fetch(server.url).read_bytes() == b"first"


def test_a_url_may_say_which_checksum_its_file_has(server):
    server.stated_length = None
    closing = server.url + "#sha256=" + hashlib.sha256(b"first").hexdigest().upper()
    server.content = b"fir"
    with pytest.raises(CheckpointError, match="what arrived has the sha256"):
        fetch(closing)
    server.content = b"first"
    copy = fetch(closing)
    assert (copy.name, copy.read_bytes()) == ("w.safetensors", b"first")


@pytest.mark.parametrize(
    ("end", "reason"),
    [("a.bin#sha256=12", "followed by 64 hexadecimal"), ("shards#sha256=" + "0" * 64, "this is a folder")],
)
def test_a_checksum_that_cannot_be_compared_is_told(memory, end, reason):
    with pytest.raises(CheckpointError, match=reason):
        fetch(f"memory://weights/{end}")


@pytest.mark.parametrize("source", ["shards", "a.bin"])
def test_without_locks_workers_that_start_together_all_get_a_copy(memory, monkeypatch, tmp_path, source):
    def refuse(_file, _operation):
        raise OSError(errno.ENOLCK, "No locks available")

    copy = type(memory).get_file
    both, one_reader = threading.Barrier(2), threading.Lock()

    def together(self, path, place, **options):
        with one_reader:  # a file in memory has one position for all who read it
            copy(self, path, place, **options)
        both.wait()

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(type(memory), "get_file", together)
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(fetch, [f"memory://weights/{source}"] * 2))
    assert len(set(paths)) == 1
    assert not list((tmp_path / "cache").rglob("partial*"))
