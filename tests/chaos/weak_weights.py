"""A server on the loopback of one weight file, and of prompts, whose transfers can be cut off."""

import contextlib
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WeakWeights(ThreadingHTTPServer):
    """Serves `content`; while `cutting`, every transfer ends after a random number of bytes.

    Args:
        seed: decides the content, where transfers end, and whether a length is stated or chunks are sent.
    """

    daemon_threads = True

    def __init__(self, seed):
        super().__init__(("127.0.0.1", 0), _Transfer)
        self.rng = random.Random(seed)
        self.content = self.rng.randbytes(200_000)
        self.chunked = self.rng.random() < 0.5
        self.prompts = b""  # the content of a path that ends with .txt
        self.cutting = True
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self):
        """The address of the file."""
        return f"http://127.0.0.1:{self.server_port}/w.safetensors"

    def handle_error(self, request, client_address):
        """Say nothing of clients that go away in between."""

    def close(self):
        """End the server."""
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Transfer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._begin()

    def do_GET(self):
        with contextlib.suppress(ConnectionError):  # who fetches may have seen enough
            self._send()

    def _content(self):
        is_text = self.path.partition("?")[0].endswith(".txt")
        return self.server.prompts if is_text else self.server.content

    def _send(self):
        self._begin()
        content = self._content()
        end = self.server.rng.randrange(len(content)) if self.server.cutting else len(content)
        for start in range(0, end, 8192):
            piece = content[start : min(start + 8192, end)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.server.chunked else piece)
        if end < len(content):
            self.close_connection = True
        elif self.server.chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _begin(self):
        self.send_response(200)
        self.send_header("ETag", '"one"')
        if self.server.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(self._content())))
        self.end_headers()

    def log_message(self, *_):
        pass
