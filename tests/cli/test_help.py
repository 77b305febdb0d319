from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import ROOT

from lib.cli.app import app


@pytest.mark.parametrize("name", app.commands)
def test_every_command_ends_its_help_with_an_example_that_it_accepts(name: str) -> None:
    """The example is the last paragraph before the options, stays on one line, and parses without a usage error."""
    shown = CliRunner().invoke(app, [name, "--help"], prog_name="python -m lib", catch_exceptions=False).output
    example = re.search(r"\n\n  Example:\n +uv run python -m lib (.+)\n\nOptions:\n", shown)
    assert example, shown
    called, *words = shlex.split(example[1])
    assert called == name
    app.commands[name].make_context(name, words)  # raises UsageError for an unknown option or a missing argument


def test_a_place_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    """Whatever a command was about to write there."""
    (tmp_path / "file").touch()
    words = [sys.executable, "-m", "lib", "sandbox", "detection", "--folder", str(tmp_path / "file")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    remedy = "What to do: name another place, or free some space."
    assert (done.returncode, done.stderr) == (1, f"Error: {tmp_path}/file/dvc-remote: Not a directory.\n{remedy}\n")


def test_ctrl_c_is_told_from_a_failure() -> None:
    """Its exit status is that of a shell's command; a question that is answered with no ends with 1."""
    script = "import click; from lib.cli.options import run_command_line; "
    ends = ["def end(): raise KeyboardInterrupt", "def end(): raise click.Abort"]
    statuses = [
        subprocess.run(
            [sys.executable, "-c", f"{script}\n{end}\nrun_command_line(click.command()(end))"], cwd=ROOT,
            capture_output=True,
        ).returncode
        for end in ends
    ]  # fmt: skip
    assert statuses == [130, 1]
