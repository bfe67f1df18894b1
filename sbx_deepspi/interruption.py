"""SIGINT and SIGTERM, noted where they come and obeyed where a run can be resumed: between two updates."""

import os
import signal
import threading
from types import FrameType
from typing import Any

DEFAULT_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interruption:
    """
    A context in which the first SIGINT or SIGTERM is only noted; the second one does what it always did.

    Handlers that somebody else has set are left alone, and so is everything outside the main thread, to which
    Python does not deliver signals.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._replaced: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number, handler in DEFAULT_HANDLERS.items():
                if signal.getsignal(number) == handler:
                    self._replaced[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.__exit__()
        # print() is not for signal handlers: it fails where it interrupts itself
        try:
            os.write(2, f"{self.received.name}: training stops after this update; once more stops it now.\n".encode())
        except BrokenPipeError:
            mute()


def mute() -> None:
    """Write nowhere from now on: Ctrl-C also ends the program that reads our output (``| tee log``)."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
