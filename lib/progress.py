"""Progress output: a line that rewrites itself on a screen, and plain lines in a log.

A progress line is rewritten after a carriage return. `Lines` turns such output (of `Bar`, tqdm or git) into plain log
lines. A terminal or an open notebook receives the rewritten line itself. A log (Kaggle's log, papermill's output,
`run.log`) receives the state of the line every `EVERY` seconds and its last state, each as a separate line.

Guarantees: a log contains no carriage return and no terminal code, and receives a line every `EVERY` seconds while a
progress line is rewritten. Requires only the standard library. Cannot: recognise a front end that allows no input
requests but renders carriage returns; it receives log lines.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from lib.escape import CODES

EVERY = 30.0  # seconds between two log lines of one progress line
REDRAWN = 1.0  # seconds between two redraws of a watched bar
WIDTH = 20  # characters of a full bar
MIB = 2**20


def find_shell() -> Any:  # noqa: ANN401  IPython's shell, or None
    """Return IPython's shell if this process is a notebook's kernel, else None."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it
    return ipython.get_ipython() if ipython else None


def is_watched(stream: TextIO) -> bool:
    """Return whether a person watches `stream` live, so that a line may be rewritten."""
    kernel = getattr(find_shell(), "kernel", None)
    if kernel is not None:
        # unattended executions (papermill, Kaggle's saved versions) disable input requests
        return bool(getattr(kernel, "_allow_stdin", False))
    return stream.isatty()


class Lines:
    """Splits text into whole lines and passes each to `show`; a rewritten line is shown every `every` seconds."""

    def __init__(self, show: Callable[[str], object], every: float = EVERY) -> None:
        self._show, self._every = show, every
        self._line, self._last = "", ""
        self._at = time.monotonic()

    def write(self, text: str) -> None:
        """Add a piece of text, which may begin and end anywhere in a line."""
        if not self._line:
            self._at = time.monotonic()  # a new line starts a new interval
        *lines, line = (self._line + text).split("\n")
        for whole in lines:
            self._end(whole)
        # the last state of a rewritten line is enough; keep the one before it, in case the last is still empty
        self._line = "\r".join(line.split("\r")[-2:])
        state = _state(self._line)
        if "\r" in self._line and state and time.monotonic() - self._at >= self._every:
            self._pass_on(state)
            self._last = state

    def end(self) -> None:
        """Show the last line even without a newline."""
        if self._line:
            self._end(self._line)
            self._line = ""

    def _end(self, line: str) -> None:
        state = _state(line)
        if "\r" not in line or state != self._last:
            self._pass_on(state)
        self._last = ""

    def _pass_on(self, line: str) -> None:
        self._show(f"{line}\n")
        self._at = time.monotonic()


def _state(line: str) -> str:
    """Return the last visible state of a rewritten line, without terminal codes."""
    states = CODES.sub("", line).split("\r")
    return states[0] if len(states) == 1 else next((state.rstrip() for state in reversed(states) if state.strip()), "")


def say(text: str) -> None:
    """Print a line while a bar is on the screen; the line replaces the bar, and the bar continues below it."""
    sys.stdout.write(f"\r{text:<100}\n")  # one call: another thread may write at the same time
    sys.stdout.flush()


class Bar:
    """A progress bar of `what` towards `total` (bytes with `is_bytes`); without a total it shows the elapsed time."""

    def __init__(
        self, what: str, total: float | None = None, *, is_bytes: bool = False, every: float = REDRAWN
    ) -> None:
        self.what, self.total = what, total
        self._is_bytes, self._every = is_bytes, every
        self._begun = self._at = time.monotonic()
        self._width = 0

    def show(self, done: float = 0) -> None:
        """Draw the bar at `done`; skip it when the previous drawing was less than `every` seconds ago."""
        now = time.monotonic()
        if now - self._at < self._every:
            return
        self._at = now
        seconds = now - self._begun
        words, times = [self.what], [duration(seconds)]
        if self.total:
            share = min(done / self.total, 1.0)
            full = round(share * WIDTH)
            amount = f"{done:.0f} of {self.total:.0f}"
            if self._is_bytes:
                amount = f"{done / MIB:.1f} of {self.total / MIB:.1f} MiB"
                times.append(f"{file_size(done / max(seconds, 0.001))}/s")
            if 0 < share < 1:
                times.append(f"{duration(seconds / share - seconds)} left")
            words.append(f"{share:4.0%} {'━' * full}{'─' * (WIDTH - full)} {amount}")
        self._write("  ".join([*words, f"({', '.join(times)})"]))

    def end(self, line: str = "") -> None:
        """Replace the bar with `line`; without one, with the total, the time that it took and the rate."""
        seconds = time.monotonic() - self._begun
        if not line and self.total and self._is_bytes:
            line = f"{self.what}: {file_size(self.total)} in {duration(seconds)}"
            line += f" ({file_size(self.total / max(seconds, 0.001))}/s)"
        self._write(line or f"{self.what}: {duration(seconds)}", "\n")

    def _write(self, text: str, end: str = "") -> None:
        # blanks cover the rest of a longer line: some front ends do not support erase codes
        sys.stdout.write(f"\r{text:<{self._width}}{end}")
        sys.stdout.flush()
        self._width = len(text)


@contextlib.contextmanager
def showing(what: str, total: float | None = None, done: Callable[[], float] = lambda: 0.0) -> Iterator[None]:
    """Show a bar while the block runs; `done` is polled for the number of bytes done out of `total`."""
    bar, over = Bar(what, total, is_bytes=True), threading.Event()

    def look() -> None:
        pause = REDRAWN
        while not over.wait(pause):
            begun = time.monotonic()
            bar.show(done())
            pause = max(REDRAWN, 20 * (time.monotonic() - begun))  # a slow `done` must not slow down the work

    thread = threading.Thread(target=look, name="progress", daemon=True)
    thread.start()
    ended = ""
    try:
        yield
    except BaseException:
        ended = f"{what}: stopped"
        raise
    finally:
        over.set()
        thread.join()
        bar.end(ended)


@contextlib.contextmanager
def counting(what: str, total: float) -> Iterator[Callable[[int], object]]:
    """Yield a function that threads call with the bytes of each step; the bar appears with the first byte."""
    bar: Bar | None = None
    done, lock, ended = 0, threading.Lock(), f"{what}: stopped"

    def add(count: int) -> None:
        nonlocal bar, done
        with lock:
            done += count
            bar = bar or Bar(what, total, is_bytes=True)
            bar.show(done)

    try:
        yield add
        ended = ""
    finally:
        if bar is not None:
            bar.end(ended)


def file_size(count: float) -> str:
    """Return a number of bytes in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Return a duration in seconds as text for people, like `3 min 05 s`."""
    if seconds < 90:  # noqa: PLR2004
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
