"""`run.log` contains what was printed and why a run stopped, and no credentials."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from lib.log import RunLog

TOKEN = "ghp_0123456789abcdef"


def hide(text: str) -> str:
    """Redact the token as `Credentials.redact` does."""
    return text.replace(TOKEN, "***")


def test_output_goes_to_the_screen_and_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The screen and the file show the same redacted text."""
    log = RunLog(tmp_path / "run.log", hide)
    print(f"hello {TOKEN}")
    print("trouble", file=sys.stderr)
    log.close()
    assert capsys.readouterr() == ("hello ***\n", "trouble\n")
    assert (tmp_path / "run.log").read_text() == "hello ***\ntrouble\n"


def test_a_progress_bar_takes_one_line(tmp_path: Path) -> None:
    """Only the last state of a progress bar is written to the file."""
    log = RunLog(tmp_path / "run.log", hide)
    for part in ("  0%", "\r 50%", "\r100%", "\n", "next\n"):
        sys.stdout.write(part)
    log.close()
    assert (tmp_path / "run.log").read_text() == "100%\nnext\n"


def test_existing_lines_of_the_file_are_kept(tmp_path: Path) -> None:
    """The log is appended to the lines that the first steps wrote."""
    (tmp_path / "run.log").write_text("0/10\n")
    log = RunLog(tmp_path / "run.log", hide)
    print("1/10")
    log.close()
    assert (tmp_path / "run.log").read_text() == "0/10\n1/10\n"


def test_the_log_is_copied_to_the_artifacts(tmp_path: Path) -> None:
    """The log is copied if the folder exists when the run ends; the folder is never created for it."""
    for name in ("made", "missing"):
        log = RunLog(tmp_path / f"{name}.log", hide)
        log.also_in(tmp_path / name)
        print(name)
        (tmp_path / "made").mkdir(exist_ok=True)
        log.close()
    assert (tmp_path / "made" / "made.log").read_text() == "made\n"
    assert not (tmp_path / "missing").exists()


def test_streams_are_restored(tmp_path: Path) -> None:
    """Closing the log restores the standard streams and the exception hook."""
    before = sys.stdout, sys.stderr, sys.excepthook
    RunLog(tmp_path / "run.log", hide).close()
    assert (sys.stdout, sys.stderr, sys.excepthook) == before


def test_the_error_that_ends_a_script_is_logged_and_copied(tmp_path: Path) -> None:
    """The redacted traceback of a script's error is in the log and in its copy."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom lib.log import RunLog\nfolder = Path(sys.argv[1])\n"
        f"log = RunLog(folder / 'run.log', lambda text: text.replace({TOKEN!r}, '***'))\n"
        f"(folder / 'artifacts').mkdir()\nlog.also_in(folder / 'artifacts')\nraise ValueError('no {TOKEN}')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    for place in (tmp_path, tmp_path / "artifacts"):
        message = (place / "run.log").read_text()
        assert "ValueError: no ***" in message
        assert "Traceback" in message


def test_the_error_that_a_notebook_shows_is_redacted(tmp_path: Path) -> None:
    """A kernel sends an error and its traceback past the standard streams; a notebook can become public."""
    start = f"""
from pathlib import Path
from lib.log import RunLog
token = "{TOKEN[:9]}" + "{TOKEN[9:]}"
log = RunLog(Path({str(tmp_path)!r}) / "run.log", lambda text: text.replace(token, "***"))"""
    cells = [start, "raise ValueError(f'no {token}')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.raises(CellExecutionError):
        NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}).execute()
    (error,) = notebook.cells[1].outputs
    assert (error.ename, error.evalue) == ("ValueError", "no ***")
    assert error.traceback
    assert TOKEN not in json.dumps(notebook) + (tmp_path / "run.log").read_text()


def test_the_error_that_ends_a_command_is_redacted(tmp_path: Path) -> None:
    """An error that nobody foresaw is shown with its traceback, and without the keys of secrets.json."""
    (tmp_path / "secrets.json").write_text(json.dumps({"GITHUB_TOKEN": TOKEN}))
    script = (
        "import click\nfrom lib.cli.options import PROJECT, run_command_line\n"
        "@click.command\n@PROJECT\n"
        "def main(project): raise ValueError(f'no {project.credentials.github_token}')\nrun_command_line(main)"
    )
    command = [sys.executable, "-c", script, "--secrets", str(tmp_path / "secrets.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("ValueError: no ***\n")
    assert TOKEN not in done.stderr
