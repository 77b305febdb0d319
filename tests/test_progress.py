"""Bars move where somebody watches, and leave a few plain lines everywhere else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lib.progress import Bar, Lines, duration, say, showing

NEVER = float("inf")


def lines_of(*pieces: str, every: float = NEVER) -> list[str]:
    """Give what a log shows of text that arrives in pieces."""
    shown: list[str] = []
    lines = Lines(shown.append, every)
    for piece in pieces:
        lines.write(piece)
    lines.end()
    return shown


def test_a_bar_leaves_its_last_state() -> None:
    """However often it was redrawn, and however its bytes were cut."""
    bar = "".join(f"\r{share:3}%" for share in range(101)) + "\nnext\n"
    assert lines_of(bar) == lines_of(*bar) == ["100%\n", "next\n"]


def test_a_bar_that_lasts_is_shown_now_and_then() -> None:
    """Each state is a line of its own when its time has come, and the last one is not said twice."""
    assert lines_of("\r 10%", "\r 20%", "\r100%", "\n", every=0) == [" 10%\n", " 20%\n", "100%\n"]


def test_a_bar_that_comes_after_a_long_silence_is_no_long_one() -> None:
    """What counts is how long this line is rewritten already."""
    shown: list[str] = []
    lines = Lines(shown.append)
    lines._at -= 1000
    for piece in ("\r  0%", "\r100%", "\n"):
        lines.write(piece)
    assert shown == ["100%\n"]


def test_lines_that_are_written_once_stay_as_they_are() -> None:
    """Blanks and empty lines too; a line without an end is shown at the end."""
    assert lines_of("  a", "b \n\n", "c") == ["  ab \n", "\n", "c\n"]


def test_what_only_a_terminal_understands_is_left_out() -> None:
    """Colours, and codes that clear a line."""
    assert lines_of("\r\x1b[K 50%\r\x1b[K100%\n\x1b[34m\x1b[1mblue\x1b[0m\n") == ["100%\n", "blue\n"]


def test_a_line_ends_as_windows_ends_it() -> None:
    """A carriage return before the end rewrites nothing."""
    assert lines_of("a\r\nb\r\n") == ["a\n", "b\n"]


def test_what_is_said_beside_a_bar_takes_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    """The state that it stood on is not left behind in the log, nor on the screen."""
    bar = Bar("epoch 1/2", 10, every=0)
    bar.show(3)
    say("Checkpoint")
    bar.show(6)
    bar.end("1/2 done")
    assert lines_of(capsys.readouterr().out) == ["Checkpoint\n", "1/2 done\n"]


def test_a_bar_says_how_far_it_is_and_how_much_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """In MiB where bytes are counted; never more than all of it."""
    bar = Bar("pulling", 8 * 2**20, is_bytes=True, every=0)
    for size in (2, 9):
        bar.show(size * 2**20)
        shown = lines_of(capsys.readouterr().out)[0]
        assert f"{size}.0 of 8.0 MiB" in shown
        assert (" 25% " in shown, " left)" in shown) == (size == 2, size == 2)
        assert ("100% " in shown) == (size == 9)


def test_work_that_fails_is_not_said_to_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    """The bar ends, and the error goes on."""
    with pytest.raises(OSError, match="full"), showing("Pulling", 100):
        raise OSError("full")
    assert lines_of(capsys.readouterr().out) == ["Pulling: stopped\n"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (61, "61 s"), (90, "1 min 30 s"), (7380, "2 h 3 min")]
)
def test_times_are_short(seconds: float, shown: str) -> None:
    """As a person would say them."""
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


def test_a_terminal_sees_the_bar_move_and_the_log_does_not(tmp_path: Path) -> None:
    """A real terminal, beside it `run.log`; then a pipe, which is no terminal."""
    reading, writing = pty.openpty()
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run.log")]
    subprocess.run(command, cwd=ROOT, stdout=writing, check=True, timeout=120)
    assert b"\r" in os.read(reading, 65536).replace(b"\r\n", b"\n").strip(b"\r")
    os.close(reading)
    os.close(writing)
    assert (tmp_path / "run.log").read_text() == "done\n"
    piped = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120).stdout
    assert piped == b"done\n"


def test_a_kernel_is_watched_where_its_front_end_can_be_asked() -> None:
    """Jupyter's browser can be; papermill, nbconvert and Kaggle's saved versions cannot."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT))
    try:
        for can_be_asked in (True, False):
            told: list[str] = []
            client.execute_interactive(
                "import sys; from lib.progress import is_watched; print(is_watched(sys.stdout))",
                allow_stdin=can_be_asked, timeout=120,
                output_hook=lambda message, told=told: told.append(message["content"].get("text", "")),
            )  # fmt: skip
            assert "".join(told).strip() == str(can_be_asked)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
