from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import ROOT

from lib.errors import CommandError
from lib.process import CommandFailed, CommandTimedOut, FollowedCommand, run_command

SECRET = "hunter2-hunter2"

# A shell whose child sleeps: its number stands in the file `child` before anything else happens. The pipe `alive`
# is held open by both; it ends only when both are gone.
SLEEPER = "sleep 600 & echo $! > child.part; mv child.part child; wait"


def redact(text: str) -> str:
    """Hide the secret as `Credentials.redact` does."""
    return text.replace(SECRET, "***")


@pytest.fixture
def pipe(tmp_path: Path) -> int:
    """Give the reading end of a named pipe that the started processes hold open for writing."""
    os.mkfifo(tmp_path / "alive")
    return os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)


def wait_until_all_are_gone(pipe: int) -> None:
    """Return when no process holds the pipe any more; the test's own time limit is the shell's 600 seconds."""
    os.set_blocking(pipe, True)
    while os.read(pipe, 100):
        pass
    os.close(pipe)


def test_output_and_errors_are_told_apart() -> None:
    """Both are given as text."""
    answer = run_command(["sh", "-c", "echo out; echo err >&2"])
    assert (answer.status, answer.output, answer.errors) == (0, "out\n", "err\n")


def test_words_reach_the_program_as_they_are(tmp_path: Path) -> None:
    """No shell stands between: quotes, dollars and paths with spaces are plain text."""
    words = ["a b", "$HOME", "'", '"', "*", "é", ""]
    script = "import sys; print(sys.argv[1:])"
    assert run_command([sys.executable, "-c", script, *words, tmp_path]).output == f"{[*words, str(tmp_path)]}\n"


def test_a_failure_says_the_command_its_status_and_what_it_printed() -> None:
    """That is what somebody needs to try it by hand."""
    with pytest.raises(CommandFailed) as caught:
        run_command(["sh", "-c", "echo trouble >&2; exit 3"])
    assert caught.value.answer.status == 3
    for part in ("sh -c", "status 3", "trouble"):
        assert part in str(caught.value)


def test_a_silent_failure_is_told_as_such() -> None:
    """An empty message would look like a mistake of ours."""
    with pytest.raises(CommandFailed, match="it printed nothing"):
        run_command(["sh", "-c", "exit 1"])


def test_a_failure_is_an_answer_where_that_was_asked() -> None:
    """Some commands say no by their status."""
    assert run_command(["sh", "-c", "echo no; exit 1"], check=False).status == 1


def test_a_program_that_is_not_there_is_named() -> None:
    """The remedy says what to install."""
    with pytest.raises(CommandError) as caught:
        run_command(["no-such-program-anywhere", "--flag"])
    assert "no-such-program-anywhere" in str(caught.value)
    assert "install" in caught.value.remedy


def test_a_missing_folder_is_not_told_as_a_missing_program(tmp_path: Path) -> None:
    """`install git` would send somebody the wrong way."""
    with pytest.raises(CommandError) as caught:
        run_command(["git", "--version"], cwd=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "install" not in caught.value.remedy


def test_the_environment_is_added_to_for_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest stays, and this process's own does not change."""
    monkeypatch.setenv("STAYS", "stays")
    answer = run_command(["sh", "-c", "echo $STAYS $ADDED"], env={"ADDED": "added"})
    assert answer.output == "stays added\n"
    assert "ADDED" not in os.environ


def test_a_command_runs_in_its_folder(tmp_path: Path) -> None:
    """And nowhere else."""
    assert run_command(["pwd", "-P"], cwd=tmp_path).output.strip() == str(tmp_path.resolve())


def test_text_is_standard_input_and_without_it_there_is_none() -> None:
    """A program that asks a question gets the end of the file, not a person."""
    assert run_command(["cat"], text="é\n" * 50_000).output == "é\n" * 50_000
    assert run_command(["cat"]).output == ""


def test_git_asks_nothing_at_a_terminal() -> None:
    """It would wait for ever in a notebook."""
    assert run_command(["sh", "-c", "echo $GIT_TERMINAL_PROMPT"]).output == "0\n"


def test_bytes_that_are_no_text_do_not_stop_a_run() -> None:
    """What can be read is given."""
    assert "abc" in run_command(["printf", "abc\\377\\376"]).output


def test_a_secret_is_shown_nowhere() -> None:
    """Neither in what was printed, nor in the error, nor in the command that the error quotes."""
    answer = run_command(["sh", "-c", f"echo {SECRET}; echo {SECRET} >&2"], redact=redact)
    assert (answer.output, answer.errors) == ("***\n", "***\n")
    with pytest.raises(CommandFailed) as caught:
        run_command(["sh", "-c", f"echo {SECRET} >&2; exit 1"], redact=redact)
    assert SECRET not in f"{caught.value}{caught.value.args}{caught.value.answer}"
    with pytest.raises(CommandTimedOut) as late:
        run_command(["sh", "-c", f"sleep 600 # {SECRET}"], redact=redact, timeout=0.1)
    assert SECRET not in str(late.value)


@pytest.mark.parametrize("position", range(180, 202, 7))
def test_no_part_of_a_secret_is_left_where_a_long_word_is_shortened(position: int) -> None:
    """Hidden first, shortened then."""
    word = "x" * position + SECRET + "y" * 100
    with pytest.raises(CommandFailed) as caught:
        run_command(["false", word], redact=redact)
    assert "hunter2" not in str(caught.value)
    assert "y" * 100 not in str(caught.value)


def test_a_time_limit_ends_the_command_and_its_children(tmp_path: Path, pipe: int) -> None:
    """Git's own helpers would go on pushing."""
    with pytest.raises(CommandTimedOut) as caught:
        run_command(["sh", "-c", f"exec 3>alive; {SLEEPER}"], cwd=tmp_path, timeout=1)
    assert (tmp_path / "child").exists()
    wait_until_all_are_gone(pipe)
    assert "gave no answer within 1 s" in str(caught.value)
    assert caught.value.remedy


def test_a_time_limit_ends_also_what_does_not_listen(tmp_path: Path, pipe: int) -> None:
    """Asked first, then forced: here the shell goes and its child ignores the question."""
    script = "exec 3>alive; (trap '' TERM; echo > child; while :; do sleep 0.1; done) & wait"
    with pytest.raises(CommandTimedOut):
        run_command(["sh", "-c", script], cwd=tmp_path, timeout=1)
    assert (tmp_path / "child").exists()
    wait_until_all_are_gone(pipe)


def test_an_interrupt_ends_the_command_and_its_children(tmp_path: Path, pipe: int) -> None:
    """Ctrl-C reaches this process alone; the command must not outlive it."""
    script = (
        "import signal; from lib.process import run_command\n"
        # a shell starts what runs in its background deaf to Ctrl-C
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"run_command(['sh', '-c', 'exec 3>alive; {SLEEPER}'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while not (tmp_path / "child").exists():
            assert process.poll() is None
            threading.Event().wait(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) != 0
    wait_until_all_are_gone(pipe)


def test_a_followed_command_is_read_while_it_works(tmp_path: Path) -> None:
    """Whole lines as they come, redacted; the last one without its end too."""
    os.mkfifo(tmp_path / "gate")
    script = f"printf 'one {SECRET}\\r\\ntwo'; read go < '{tmp_path}/gate'; printf ' three\\nfour'"
    command = FollowedCommand(["sh", "-c", script], redact=redact)
    lines = command.lines(60)
    assert next(lines) == "one ***"
    assert list(command.lines(0.1)) == []
    (tmp_path / "gate").write_text("on\n")
    assert list(lines) == ["two three", "four"]
    assert command.has_ended
    command.close()


def test_a_followed_command_is_ended_with_its_children(tmp_path: Path, pipe: int) -> None:
    """Whoever does not want to hear more leaves nothing behind."""
    command = FollowedCommand(["sh", "-c", f"cd '{tmp_path}'; exec 3>alive; echo here; {SLEEPER}"])
    assert next(command.lines(60)) == "here"
    command.close()
    wait_until_all_are_gone(pipe)
    assert list(command.lines(60)) == []
