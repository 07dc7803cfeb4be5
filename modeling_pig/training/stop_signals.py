"""Let SIGTERM and Ctrl-C stop a training after the current step, so that it can save its state."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Signal handler that notes a request to stop. A second Ctrl-C raises `KeyboardInterrupt`.

    Attributes:
        is_requested (`bool`): this process received SIGTERM or SIGINT.
    """

    is_requested = False

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        if self.is_requested and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_requested = True


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Within the context, note SIGTERM (which schedulers send before they take a machine away) and SIGINT."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread only
        yield request
        return
    handlers = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int) -> None:
    """Ignore SIGTERM and SIGINT in a data worker: a signal to the process group must not break the current step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


__all__ = ["StopRequest", "catch_stop_signals", "ignore_stop_signals"]
