"""`run.log`: everything a run printed, and why it stopped, without credentials.

Guarantees: what is written to standard output and error goes to the notebook and to the file, redacted in both; an
error that ends a cell is written too; progress bars take a line now and then (`lib/progress.py`), in the file always
and on the screen where nobody watches. Cannot: see what worker processes write.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from lib.progress import Lines, find_shell, is_watched


class RunLog:
    """The log of one run, at `path`; `also_in` is a folder that gets a copy when the run ends, well or badly."""

    def __init__(self, path: Path, redact: Callable[[str], str]) -> None:
        self.path, self._redact = path, redact
        self._also_in: Path | None = None
        self._told: Callable[[BaseException], None] | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._streams = sys.stdout, sys.stderr
        self._hook = sys.excepthook
        sys.stdout = _Tee(sys.stdout, self._write, redact)
        sys.stderr = _Tee(sys.stderr, self._write, redact)
        sys.excepthook = self._on_exception  # a script; a notebook's cells report by the event below
        self._shell = find_shell()
        if self._shell is not None:
            self._shell.events.register("post_run_cell", self._on_cell)

    def also_in(self, folder: Path) -> None:
        """Keep a copy with the artifacts in `folder`, once it is there."""
        self._also_in = folder

    def on_error(self, tell: Callable[[BaseException], None] | None) -> None:
        """Call `tell` with the error that ends the run, when one does; None: nobody is told any more."""
        self._told = tell

    def close(self) -> None:
        """Give the streams back and leave the copy."""
        self._end_lines()
        sys.stdout, sys.stderr = self._streams
        sys.excepthook = self._hook
        if self._shell is not None:
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
            # a full disk must not stop a training for the sake of its log
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

    def _on_exception(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self._report(error)
        self._hook(kind, error, trace)

    def _report(self, error: BaseException) -> None:
        self._end_lines()
        self._write(self._redact("".join(traceback.format_exception(error))))
        self._copy()
        if self._told is not None:
            self._told(error)


class _Tee:
    """A stream that also writes to the log: whole lines, which are all that the stream gets where nobody watches it."""

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
        """End the line that has no end yet."""
        with self._lock:
            self._lines.end()
            self._stream.flush()

    def _show(self, line: str) -> None:
        line = self._redact(line)
        self._log(line)
        if not self._watched:
            self._stream.write(line)

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  whatever else a stream can do
        return getattr(self._stream, name)
