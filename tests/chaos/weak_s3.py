"""An S3 on the loopback that can be made to fail: what it holds stays."""

import contextlib
import os
import threading
import time
from unittest import mock

import s3fs
from moto.backends import get_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

_ANSWERS = {"failing": ("503 Slow Down", "SlowDown"), "refusing": ("403 Forbidden", "AccessDenied")}


class _Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


class WeakS3:
    """A server of one bucket, `bucket`, which `weaken` and `heal` change."""

    def __init__(self):
        get_backend("s3").reset()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._weakness, self._server, self._port = "", None, 0
        self.slow_s = 2.0  # seconds before each answer while it is slow
        self._listen()
        with self.in_this_process():
            s3fs.S3FileSystem().mkdir("bucket")

    @property
    def environment(self):
        """What processes need to find it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @contextlib.contextmanager
    def in_this_process(self):
        """Let s3fs of this process find it for the length of the block."""
        with mock.patch.dict(os.environ, self.environment):
            s3fs.S3FileSystem.clear_instance_cache()
            yield
        s3fs.S3FileSystem.clear_instance_cache()

    def weaken(self, weakness):
        """Be "failing", "refusing", "slow" or "dead" from now on."""
        self._weakness = weakness
        if weakness == "dead":
            self._deafen()

    def heal(self):
        """Answer again."""
        self._weakness = ""
        if self._server is None:
            self._listen()

    def close(self):
        """End the server."""
        if self._server is not None:
            self._deafen()

    def _listen(self):
        self._server = make_server(
            "127.0.0.1", self._port, self._answer, threaded=True, request_handler=_Quiet
        )
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def _deafen(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server = None

    def _answer(self, environ, start_response):
        if self._weakness == "slow":
            time.sleep(self.slow_s)
        if self._weakness not in _ANSWERS:
            return self._moto(environ, start_response)
        status, code = _ANSWERS[self._weakness]
        start_response(status, [("Content-Type", "application/xml")])
        return [f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()]
