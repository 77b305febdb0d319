"""`run.log`: everything that a run printed and the error that stopped it, without credentials.

Guarantees: standard output and standard error go to the notebook and to the file, redacted in both. An error that ends
a cell is written to the file too, and its traceback is redacted in both. A progress bar is reduced to occasional lines
(`lib/progress.py`): always in the file, and on the screen if the output is not watched. Cannot: capture the output of
worker processes.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lib.progress import Lines, find_shell, is_watched


class RunLog:
    """The log of one run, at `path`; `also_in` sets a folder for a copy when the run ends, with or without an error."""

    def __init__(self, path: Path, redact: Callable[[str], str]) -> None:
        self.path, self._redact = path, redact
        self._also_in: Path | None = None
        self._handlers: tuple[Callable[[BaseException], object], ...] = ()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._streams = sys.stdout, sys.stderr
        self._hook = sys.excepthook
        sys.stdout = _Tee(sys.stdout, self._write, redact)
        sys.stderr = _Tee(sys.stderr, self._write, redact)
        sys.excepthook = self._on_exception  # for a script; a notebook reports cell errors by the event below
        self._shell = find_shell()
        if self._shell is not None:
            self._shell.events.register("post_run_cell", self._on_cell)
            # a notebook shows an error past the standard streams
            self._show_error = self._shell._showtraceback  # noqa: SLF001  IPython has no public way
            self._shell._showtraceback = self._show_redacted  # noqa: SLF001

    def also_in(self, folder: Path) -> None:
        """Copy the log to the artifacts in `folder` when the run ends, if the folder exists by then."""
        self._also_in = folder

    def on_error(self, *handlers: Callable[[BaseException], object]) -> None:
        """Let these handlers, and no earlier ones, be called in order with an error that ends the run."""
        self._handlers = handlers

    def close(self) -> None:
        """Restore the standard streams and write the copy."""
        self._end_lines()
        sys.stdout, sys.stderr = self._streams
        sys.excepthook = self._hook
        if self._shell is not None:
            self._shell._showtraceback = self._show_error  # noqa: SLF001
            with contextlib.suppress(ValueError):
                self._shell.events.unregister("post_run_cell", self._on_cell)
        self._copy()
        self._file.close()

    def _copy(self) -> None:
        if self._also_in is not None and self._also_in.is_dir():
            with contextlib.suppress(OSError):
                shutil.copyfile(self.path, self._also_in / self.path.name)

    def _write(self, line: str) -> None:
        if not self._file.closed:
            # a full disk must not stop the training because of its log
            with contextlib.suppress(OSError):
                self._file.write(line)

    def _end_lines(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Tee):
                stream.end()

    def _on_cell(self, result: Any) -> None:  # noqa: ANN401  IPython's ExecutionResult
        self._end_lines()
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            self._report(error)

    def _show_redacted(self, kind: type[BaseException], error: object, lines: Sequence[str]) -> None:
        self._show_error(kind, self._redact(str(error)), [self._redact(line) for line in lines])

    def _on_exception(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._report(error)
        self._hook(kind, error, trace)

    def _report(self, error: BaseException) -> None:
        self._end_lines()
        self._write(self._redact("".join(traceback.format_exception(error))))
        self._copy()
        for handler in self._handlers:
            handler(error)


def redact_tracebacks(redact: Callable[[str], str]) -> None:
    """Redact the traceback of an error that ends this process."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)

    sys.excepthook = show


class _Tee:
    """A stream that also writes whole lines to the log; an unwatched stream itself receives only whole lines."""

    def __init__(self, stream: TextIO, write: Callable[[str], None], redact: Callable[[str], str]) -> None:
        self._stream, self._log, self._redact = stream, write, redact
        self._watched = is_watched(stream)
        self._lines = Lines(self._show)
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            if self._watched:
                self._stream.write(self._redact(text))
            self._lines.write(text)
        return len(text)

    def end(self) -> None:
        """Flush the last line even without a newline."""
        with self._lock:
            self._lines.end()
            self._stream.flush()

    def _show(self, line: str) -> None:
        line = self._redact(line)
        self._log(line)
        if not self._watched:
            self._stream.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  any other attribute of the stream
        return getattr(self._stream, name)
