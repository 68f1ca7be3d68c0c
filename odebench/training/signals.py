"""Handle signals that stop a training after its current step."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Context manager in which a signal only sets ``signal_number``; the training loop then saves and exits.

    A second Ctrl-C raises KeyboardInterrupt at once. SIGHUP (a closed terminal) does not stop a process that was
    started with nohup. Outside the main thread no signal is caught, because Python allows no signal handlers there.
    """

    def __init__(self, notice: str = "") -> None:
        """Catch no signals yet. notice: text to log at the first signal, because the loop may need long to react."""
        self.signal_number = 0
        self._notice = notice
        self._previous_handlers: dict[int, Any] = {}

    @property
    def name(self) -> str | None:
        """The name of the received signal, or None."""
        return signal.Signals(self.signal_number).name if self.signal_number else None

    def forward(self) -> None:
        """Call the previous handler of the signal, after saving. A launcher such as submitit then requeues the job."""
        handler = self._previous_handlers.get(self.signal_number)
        if callable(handler) and handler is not signal.default_int_handler:
            handler(self.signal_number, None)

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            caught = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._notice and not self.signal_number:
            second = "; a second one stops at once" if number == signal.SIGINT else ""
            log.warning("%s: %s%s", signal.Signals(number).name, self._notice, second)
        self.signal_number = self.signal_number or number
