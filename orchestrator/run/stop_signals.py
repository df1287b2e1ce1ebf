"""Ctrl-C and SIGTERM as something the main loop asks about instead of something that hits it."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM where no main loop asks for it; like Ctrl-C, nothing that handles errors may catch it."""


def signal_of(stop: KeyboardInterrupt) -> signal.Signals:
    """Tell which signal an exception stands for."""
    return signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` for the length of the block, as Ctrl-C raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


@contextlib.contextmanager
def undisturbed_start() -> Iterator[None]:
    """Let `ray.init` run: the first signal waits for the end of the block, the second does not.

    Left half-way, Ray may crash the interpreter at its end. So it gets no handlers of its own either, which would exit
    with a code that is no signal's.

    Raises:
        Terminated: SIGTERM came within the block.
        KeyboardInterrupt: Ctrl-C came within the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[type[KeyboardInterrupt]] = []

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(Terminated if number == signal.SIGTERM else KeyboardInterrupt)
        if len(noted) > 1:
            raise noted[0]

    install = signal.signal
    former: dict[int, Any] = {name: install(name, note) for name in _SIGNALS}

    def install_others(signalnum: int, handler: Any) -> Any:
        return former[signalnum] if signalnum in former else install(signalnum, handler)

    signal.signal = install_others
    try:
        yield
    finally:
        signal.signal = install
        for name, handler in former.items():
            signal.signal(name, handler)
    if noted:
        raise noted[0]


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


class StopSignals:
    """Counts requests to stop while its block runs: the first asks to drain, the second to stop now.

    Enter the block after `ray.init`, which installs a SIGTERM handler of its own. Outside the main thread no
    handler can be installed; the caller's own then stay.
    """

    def __init__(self) -> None:
        self._former: dict[signal.Signals, Any] = {}
        self.count = 0
        self.last: signal.Signals | None = None

    @property
    def draining(self) -> bool:
        """Finish what is under way, begin nothing."""
        return self.count >= 1

    @property
    def stopping(self) -> bool:
        """Drop everything now."""
        return self.count >= 2

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {name: signal.signal(name, self._note) for name in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, handler in self._former.items():
            signal.signal(name, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of handlers
        self.count += 1
        self.last = signal.Signals(number)
