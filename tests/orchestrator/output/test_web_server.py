"""An output behind a web server, which can be read where the server gives files in pieces, and never written."""

import functools
import random
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from toprovar_batch.orchestrator.cli import main
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.output.folder import PLAN_COLUMNS, open_output
from toprovar_batch.orchestrator.prompts.sample_plan import plan_job
from toprovar_batch.worker.part_file import PartWriter, dataset_schema, result_rows
from toprovar_batch.worker.shard_stats import ShardStats


class Server(ThreadingHTTPServer):
    """Says nothing of a client that leaves before a file's end."""

    def handle_error(self, request, client_address):
        pass


class WholeFiles(SimpleHTTPRequestHandler):
    """Answers every range with the whole file, as Python's server does."""

    def log_message(self, *args):
        pass


class Ranges(WholeFiles):
    """Answers a range with that range."""

    def do_GET(self):
        if "Range" not in self.headers:
            super().do_GET()
            return
        first, last = self.headers["Range"].removeprefix("bytes=").split("-")
        content = Path(self.translate_path(self.path)).read_bytes()
        piece = content[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{int(first) + len(piece) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        self.wfile.write(piece)


@pytest.fixture
def serve(write_job, tmp_path):
    """Serves a whole dataset by a handler; gives its address."""
    job = load_job(write_job())
    plan = plan_job(job)
    schema = dataset_schema(field for field in plan.samples.schema if field.name not in PLAN_COLUMNS)
    with open_output(job, plan, schema) as folder:
        for shard_id in range(plan.num_shards):
            # More than pyarrow reads at once: a file in one piece needs no ranges.
            image = {"bytes": random.Random(shard_id).randbytes(100_000), "path": "a.png"}
            rows = result_rows(plan.shard(shard_id), [{"status": "ok", "image": image}] * 4, schema)
            stats = ShardStats(job=folder.job)
            stats.add_rows(rows)
            with PartWriter(folder.part_url(shard_id, plan.num_shards), schema, folder.scratch) as part:
                part.write(rows)
                part.publish({"shard_id": shard_id, **stats.to_json()})
    servers = []

    def start(handler):
        server = Server(("127.0.0.1", 0), functools.partial(handler, directory=tmp_path))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/out"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


READERS = [["status"], ["status", "--verify"], ["sheet", "--file", "s.png"], ["fsck"], ["evaluate"]]


def test_no_part_is_called_damaged_where_a_server_gives_files_only_whole(serve, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = serve(WholeFiles)
    for command in READERS:
        result = CliRunner().invoke(main, [*command, address])
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"Error: {address}/"), command
        assert "its web server gives files only whole (it has no range requests)" in result.stderr
        assert result.stderr.count("\n") == 1
        assert "damaged" not in result.output


def test_an_output_behind_a_server_with_ranges_is_read(serve):
    address = serve(Ranges)
    result = CliRunner().invoke(main, ["status", "--verify", address])
    assert result.exit_code == 0, result.output
    assert "every part reads back whole" in result.stdout


def test_nothing_is_repaired_through_a_web_server(serve):
    address = serve(Ranges)
    result = CliRunner().invoke(main, ["fsck", "--repair", address])
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: {address}: nothing can be written through http://; use a folder, or a URL such as s3://\n"
    )


@pytest.mark.parametrize("command", READERS)
def test_a_server_that_does_not_answer_is_one_sentence(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [*command, "http://127.0.0.1:9/out"])
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "Error: http://127.0.0.1:9/out cannot be read now: Cannot connect to host"
    )
    assert result.stderr.count("\n") == 1
