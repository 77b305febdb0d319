"""How far something is, shown in one way: a line that is written again after a carriage return.

Whoever writes such a line (`Bar`, tqdm, git), `Lines` makes of it what a log can hold. A terminal and a notebook that
somebody has open are given the line as it is and show it move; a log is given one state of it every `EVERY` seconds and
the last one, each a line of its own: Kaggle's log, papermill's output, `run.log`.

Guarantees: a log holds no carriage return and no terminal code, and says something every `EVERY` seconds while a line
is rewritten. Needs the standard library alone. Cannot: know a front end that asks no questions and shows carriage
returns all the same; it is given the log's lines.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

EVERY = 30.0  # seconds
REDRAWN = 1.0  # seconds between two states of a bar that is watched
WIDTH = 20  # characters of a whole bar
MIB = 2**20
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def find_shell() -> Any:  # noqa: ANN401  IPython's shell, or None
    """Give the notebook's shell, where this process is one's kernel."""
    with contextlib.suppress(ImportError):
        from IPython import get_ipython

        return get_ipython()
    return None


def is_watched(stream: TextIO) -> bool:
    """Whether what is written to `stream` is seen by somebody at once, and a line may be written again."""
    kernel = getattr(find_shell(), "kernel", None)
    if kernel is not None:
        # who executes a notebook without anybody before it lets it ask no questions: papermill, Kaggle's saved versions
        return bool(getattr(kernel, "_allow_stdin", False))
    return stream.isatty()


class Lines:
    """Makes whole lines of what is written and gives each to `show`; of one that is rewritten, a state now and then."""

    def __init__(self, show: Callable[[str], object], every: float = EVERY) -> None:
        self._show, self._every = show, every
        self._line, self._last = "", ""
        self._at = time.monotonic()

    def write(self, text: str) -> None:
        """Take a piece of text, wherever it begins and ends."""
        if not self._line:
            self._at = time.monotonic()  # a line begins
        *lines, line = (self._line + text).split("\n")
        for whole in lines:
            self._end(whole)
        # of what was rewritten the last state is enough, and the one before it while the last is empty
        self._line = "\r".join(line.split("\r")[-2:])
        state = _state(self._line)
        if "\r" in self._line and state and time.monotonic() - self._at >= self._every:
            self._give(state)
            self._last = state

    def end(self) -> None:
        """Show what has no end yet."""
        if self._line:
            self._end(self._line)
            self._line = ""

    def _end(self, line: str) -> None:
        state = _state(line)
        if "\r" not in line or state != self._last:
            self._give(state)
        self._last = ""

    def _give(self, line: str) -> None:
        self._show(f"{line}\n")
        self._at = time.monotonic()


def _state(line: str) -> str:
    """Give how a line looks in the end, without what only a terminal understands."""
    states = CODES.sub("", line).split("\r")
    return states[0] if len(states) == 1 else next((state.rstrip() for state in reversed(states) if state.strip()), "")


def say(text: str) -> None:
    """Print a line from beside the work whose bar is on the screen: in its place, and the bar goes on below."""
    sys.stdout.write(f"\r{text:<100}\n")  # in one piece: another thread may write too
    sys.stdout.flush()


class Bar:
    """How far `what` is, of `total`: bytes with `is_bytes`; without a total it says how long it has taken."""

    def __init__(
        self, what: str, total: float | None = None, *, is_bytes: bool = False, every: float = REDRAWN
    ) -> None:
        self.what, self.total = what, total
        self._is_bytes, self._every = is_bytes, every
        self._begun = self._at = time.monotonic()
        self._width = 0

    def show(self, done: float = 0) -> None:
        """Say that so much is done; whatever comes too soon after the one before is left out."""
        now = time.monotonic()
        if now - self._at < self._every:
            return
        self._at = now
        seconds = now - self._begun
        words = [self.what]
        if self.total:
            share = min(done / self.total, 1.0)
            full = round(share * WIDTH)
            words.append(f"{share:4.0%} {'━' * full}{'─' * (WIDTH - full)} {self._amount(done, self.total)}")
            left = f", {duration(seconds / share - seconds)} left" if 0 < share < 1 else ""
            words.append(f"({duration(seconds)}{left})")
        else:
            words.append(f"({duration(seconds)})")
        self._write("  ".join(words))

    def end(self, line: str = "") -> None:
        """Put a line in the bar's place; without one, what was done and how long it took."""
        done = f"{self._size(self.total)} in " if self.total and self._is_bytes else ""
        self._write(line or f"{self.what}: {done}{duration(time.monotonic() - self._begun)}", "\n")

    def _amount(self, done: float, total: float) -> str:
        return f"{done / MIB:.1f} of {self._size(total)}" if self._is_bytes else f"{done:.0f} of {total:.0f}"

    @staticmethod
    def _size(size: float) -> str:
        return f"{size / MIB:.1f} MiB"

    def _write(self, text: str, end: str = "") -> None:
        # the blanks hide the rest of a longer line, also where codes that would do so are not understood
        sys.stdout.write(f"\r{text:<{self._width}}{end}")
        sys.stdout.flush()
        self._width = len(text)


@contextlib.contextmanager
def showing(what: str, total: float | None = None, done: Callable[[], float] = lambda: 0.0) -> Iterator[None]:
    """Show how far the work inside is that shows nothing by itself: `done` is asked for bytes of `total`."""
    bar, over = Bar(what, total, is_bytes=True), threading.Event()

    def look() -> None:
        pause = REDRAWN
        while not over.wait(pause):
            begun = time.monotonic()
            bar.show(done())
            pause = max(REDRAWN, 20 * (time.monotonic() - begun))  # looking must not cost what is looked at

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


def duration(seconds: float) -> str:
    """Give a time for people."""
    if seconds < 90:  # noqa: PLR2004
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60:02d} s"
