"""Bars move on a watched screen, and leave a few plain lines in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

from lib.progress import Bar, Lines, counting, duration, say, showing

NEVER = float("inf")


def lines_of(*pieces: str, every: float = NEVER) -> list[str]:
    """Return the log lines of text that arrives in pieces."""
    shown: list[str] = []
    lines = Lines(shown.append, every)
    for piece in pieces:
        lines.write(piece)
    lines.end()
    return shown


def test_a_bar_leaves_its_last_state() -> None:
    """A log shows only the last state of a bar, however its bytes were split."""
    bar = "".join(f"\r{share:3}%" for share in range(101)) + "\nnext\n"
    assert lines_of(bar) == lines_of(*bar) == ["100%\n", "next\n"]


def test_a_long_bar_is_shown_at_intervals() -> None:
    """Each due state is a line of its own, and the last one is not repeated."""
    assert lines_of("\r 10%", "\r 20%", "\r100%", "\n", every=0) == [" 10%\n", " 20%\n", "100%\n"]


def test_a_bar_after_a_long_silence_starts_a_new_interval() -> None:
    """The interval starts with the first state of the bar, not with the line before it."""
    shown: list[str] = []
    lines = Lines(shown.append)
    lines._at -= 1000
    for piece in ("\r  0%", "\r100%", "\n"):
        lines.write(piece)
    assert shown == ["100%\n"]


def test_plain_lines_stay_unchanged() -> None:
    """Blanks and empty lines are kept; a last line without a newline is shown at the end."""
    assert lines_of("  a", "b \n\n", "c") == ["  ab \n", "\n", "c\n"]


def test_terminal_codes_are_removed() -> None:
    """Colours, and codes that clear a line, are removed."""
    assert lines_of("\r\x1b[K 50%\r\x1b[K100%\n\x1b[34m\x1b[1mblue\x1b[0m\n") == ["100%\n", "blue\n"]


def test_a_carriage_return_before_a_newline_rewrites_nothing() -> None:
    """CRLF ends a line without rewriting it."""
    assert lines_of("a\r\nb\r\n") == ["a\n", "b\n"]


def test_a_line_printed_during_a_bar_replaces_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    """The replaced state of the bar remains neither in the log nor on the screen."""
    bar = Bar("epoch 1/2", 10, every=0)
    bar.show(3)
    say("Checkpoint")
    bar.show(6)
    bar.end("1/2 done")
    assert lines_of(capsys.readouterr().out) == ["Checkpoint\n", "1/2 done\n"]


def test_a_bar_shows_progress_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """A bar of bytes shows MiB, rate and time left, and never more than the total."""
    bar = Bar("pulling", 8 * 2**20, is_bytes=True, every=0)
    for size in (2, 9):
        bar.show(size * 2**20)
        shown = lines_of(capsys.readouterr().out)[0]
        assert f"{size}.0 of 8.0 MiB" in shown
        assert "iB/s" in shown
        assert (" 25% " in shown, " left)" in shown) == (size == 2, size == 2)
        assert ("100% " in shown) == (size == 9)


def test_a_bar_of_failed_work_ends_as_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    """The bar ends as stopped, and the error is raised."""
    with pytest.raises(OSError, match="full"), showing("Pulling", 100):
        raise OSError("full")
    assert lines_of(capsys.readouterr().out) == ["Pulling: stopped\n"]


def failing(step: int) -> Iterator[int]:
    """Yield one step, then fail."""
    yield step
    raise OSError("full")


def test_a_bar_that_threads_feed_appears_with_the_first_byte(capsys: pytest.CaptureFixture[str]) -> None:
    """Work that moves no byte shows no bar; failed work ends as stopped."""
    with counting("Uploading", 100):
        pass
    assert capsys.readouterr().out == ""
    with counting("Uploading", 100) as add, ThreadPoolExecutor(4) as pool:
        list(pool.map(add, [20] * 5))
    assert "Uploading: 0.0 MiB in " in lines_of(capsys.readouterr().out)[0]
    with pytest.raises(OSError, match="full"), counting("Uploading", 100) as add:
        list(map(add, failing(50)))
    assert lines_of(capsys.readouterr().out) == ["Uploading: stopped\n"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (61, "61 s"), (90, "1 min 30 s"), (7380, "2 h 3 min")]
)
def test_durations_are_short(seconds: float, shown: str) -> None:
    """A duration is rounded to at most two units."""
    assert duration(seconds) == shown


SCRIPT = """
import sys
from pathlib import Path
from lib.log import RunLog
from lib.progress import Bar
log = RunLog(Path(sys.argv[1]), str)
bar = Bar("work", 2, every=0)
bar.show(1)
bar.end("done")
log.close()
"""


def test_a_bar_moves_on_a_terminal_and_not_in_the_log(tmp_path: Path) -> None:
    """A real terminal receives the rewritten line; `run.log` and a pipe receive the last state."""
    reading, writing = pty.openpty()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run.log")]
    subprocess.run(command, cwd=ROOT, stdout=writing, check=True, timeout=120)
    assert b"\r" in os.read(reading, 65536).replace(b"\r\n", b"\n").strip(b"\r")
    os.close(reading)
    os.close(writing)
    assert (tmp_path / "run.log").read_text() == "done\n"
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120).stdout
    assert piped == b"done\n"


def test_a_kernel_is_watched_if_its_front_end_accepts_input_requests() -> None:
    """Jupyter accepts input requests; papermill, nbconvert and Kaggle's saved versions do not."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT))
    try:
        for can_be_asked in (True, False):
            lines: list[str] = []
            client.execute_interactive(
                "import sys; from lib.progress import is_watched; print(is_watched(sys.stdout))",
                allow_stdin=can_be_asked, timeout=120,
                output_hook=lambda message, lines=lines: lines.append(message["content"].get("text", "")),
            )  # fmt: skip
            assert "".join(lines).strip() == str(can_be_asked)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
