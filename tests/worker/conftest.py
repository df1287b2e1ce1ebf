"""What tests of the worker share."""

import threading

import pytest

from toprovar_batch.worker import cached_copy


@pytest.fixture
def lock_after_all(monkeypatch):
    """Lets nobody have the lock of a cached copy before `count` threads ask for it; gives the list of who asked."""

    def patch(count):
        all_ask, asked, real = threading.Barrier(count), [], cached_copy.lock_file

        def lock_file(descriptor, **options):
            asked.append(threading.get_ident())
            all_ask.wait()
            return real(descriptor, **options)

        monkeypatch.setattr(cached_copy, "lock_file", lock_file)
        return asked

    return patch
