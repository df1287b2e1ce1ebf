"""What tests of the worker share."""

import fcntl
import threading
from types import SimpleNamespace

import pytest


@pytest.fixture
def lock_after_all(monkeypatch):
    """Lets nobody have a module's file lock before `count` threads ask for it; gives the list of who asked."""

    def patch(module, count):
        all_ask, asked = threading.Barrier(count), []

        def flock(file, kind):
            asked.append(threading.get_ident())
            all_ask.wait()
            fcntl.flock(file, kind)

        monkeypatch.setattr(module, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX))
        return asked

    return patch
