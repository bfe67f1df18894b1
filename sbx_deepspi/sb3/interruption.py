"""SIGINT and SIGTERM end training between two updates, where the saved model can be resumed."""

import os
import signal
import threading
from types import FrameType
from typing import Any

DEFAULT_HANDLERS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class Interruption:
    """
    A context in which the first SIGINT or SIGTERM only sets ``received``; a second one ends the program, as it would
    outside of this context.

    Handlers that the user's program has set stay in place. Outside the main thread nothing changes, because only the
    main thread receives signals.
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
        # not print(): it fails if the signal arrives during another print()
        try:
            os.write(2, f"{self.received.name}: training stops after this update; once more stops it now.\n".encode())
        except BrokenPipeError:
            mute()


def mute() -> None:
    """
    Discard all further output. In ``program | tee log``, Ctrl-C also ends ``tee``, and every later write would raise
    BrokenPipeError.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
