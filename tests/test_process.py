"""Subprocesses are limited in time, ended with their children, and redacted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from lib import process as process_module
from lib.errors import CommandError, HostError
from lib.process import (
    CommandFailed,
    CommandTimedOut,
    FollowedCommand,
    SideBySide,
    clean_environment,
    git_settings,
    make_environment,
    run_command,
)

SECRET = "hunter2-hunter2"

# A shell whose child sleeps: its process id is written to the file `child` first. The pipe `alive`
# is held open by both; it ends only when both are gone.
SLEEPER = "sleep 600 & echo $! > child.part; mv child.part child; wait"


def redact(text: str) -> str:
    """Redact the secret as `Credentials.redact` does."""
    return text.replace(SECRET, "***")


@pytest.fixture
def pipe(tmp_path: Path) -> int:
    """Return the reading end of a named pipe that the started processes keep open for writing."""
    os.mkfifo(tmp_path / "alive")
    return os.open(tmp_path / "alive", os.O_RDONLY | os.O_NONBLOCK)


def wait_until_all_are_gone(pipe: int) -> None:
    """Wait until no process keeps the pipe open; the test's own time limit is the shell's 600 seconds."""
    os.set_blocking(pipe, True)
    while os.read(pipe, 100):
        pass
    os.close(pipe)


def test_output_and_errors_are_separate() -> None:
    """Standard output and standard error are returned separately, as text."""
    answer = run_command(["sh", "-c", "echo out; echo err >&2"])
    assert (answer.status, answer.output, answer.errors) == (0, "out\n", "err\n")


def test_arguments_are_passed_unchanged(tmp_path: Path) -> None:
    """No shell interprets quotes, dollars or spaces."""
    words = ["a b", "$HOME", "'", '"', "*", "é", ""]
    script = "import sys; print(sys.argv[1:])"
    assert run_command([sys.executable, "-c", script, *words, tmp_path]).output == f"{[*words, str(tmp_path)]}\n"


def test_a_failure_shows_the_command_its_status_and_its_output() -> None:
    """The error holds all that is needed to repeat the command by hand."""
    with pytest.raises(CommandFailed) as caught:
        run_command(["sh", "-c", "echo trouble >&2; exit 3"])
    assert caught.value.answer.status == 3
    for part in ("sh -c", "status 3", "trouble"):
        assert part in str(caught.value)


def test_a_failure_without_output_is_reported_as_such() -> None:
    """The message of a failed command is never empty."""
    with pytest.raises(CommandFailed, match="it printed nothing"):
        run_command(["sh", "-c", "exit 1"])


def test_a_failure_is_returned_without_check() -> None:
    """With `check=False` the exit status is returned instead of raised."""
    assert run_command(["sh", "-c", "echo no; exit 1"], check=False).status == 1


def test_a_missing_program_is_named() -> None:
    """The error names the program, and the remedy is to install it."""
    with pytest.raises(CommandError) as caught:
        run_command(["no-such-program-anywhere", "--flag"])
    assert "no-such-program-anywhere" in str(caught.value)
    assert "install" in caught.value.remedy


def test_a_missing_folder_is_not_reported_as_a_missing_program(tmp_path: Path) -> None:
    """The error names the folder, and does not suggest to install the program."""
    with pytest.raises(CommandError) as caught:
        run_command(["git", "--version"], cwd=tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)
    assert "install" not in caught.value.remedy


def test_the_environment_is_extended_for_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other variables are kept, and this process's own environment does not change."""
    monkeypatch.setenv("STAYS", "stays")
    answer = run_command(["sh", "-c", "echo $STAYS $ADDED"], env={"ADDED": "added"})
    assert answer.output == "stays added\n"
    assert "ADDED" not in os.environ


OTHERS = {  # settings of an image, a shell, a hook or another run, which change what our programs do
    "UV_CONSTRAINT", "UV_OVERRIDE", "UV_BUILD_CONSTRAINT", "UV_EXCLUDE_NEWER", "UV_PYTHON", "UV_SYSTEM_PYTHON",
    "PIP_TARGET", "PIP_USER", "PIP_CONSTRAINT", "PIP_REQUIRE_VIRTUALENV", "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE", "GIT_TRACE", "GIT_TRACE_CURL", "GIT_CURL_VERBOSE", "GIT_DEFAULT_HASH",
    "GIT_LITERAL_PATHSPECS", "GIT_CONFIG_PARAMETERS", "DVC_ROOT", "DVC_STUDIO_TOKEN", "PYTHONSAFEPATH", "PYTHONSTARTUP",
    "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONINSPECT", "WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_MODE",
    "WANDB_DISABLED", "WANDB_RUN_GROUP", "WANDB_SERVICE", "CUDA_LAUNCH_BLOCKING", "RANK", "LOCAL_RANK", "WORLD_SIZE",
    "MASTER_PORT", "TORCHELASTIC_RUN_ID", "FORCE_COLOR", "CLICOLOR_FORCE", "LANGUAGE", "VIRTUAL_ENV",
}  # fmt: skip
MACHINE = {  # how this machine reaches the network and its GPUs, and whose accounts are used
    "PATH", "HOME", "LD_LIBRARY_PATH", "HTTPS_PROXY", "SSL_CERT_FILE", "TMPDIR", "UV_DEFAULT_INDEX", "UV_CACHE_DIR",
    "UV_INDEX_MINE_PASSWORD", "UV_OFFLINE", "PIP_INDEX_URL", "PIP_CERT", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_KEY_12",
    "GIT_SSH_COMMAND", "GIT_SSL_CAINFO", "GIT_ASKPASS", "GIT_AUTHOR_NAME", "DVC_GLOBAL_CONFIG_DIR", "PYTHONPATH",
    "WANDB_API_KEY", "WANDB_BASE_URL", "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "NCCL_P2P_DISABLE", "KAGGLE_CONFIG_DIR",
}  # fmt: skip


def test_a_program_gets_the_settings_that_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting of uv, pip, Git, DVC, Python, W&B and CUDA is decided by name; what the machine is, passes."""
    for name in OTHERS | MACHINE:
        monkeypatch.setenv(name, os.environ.get(name, "given"))
    environment = make_environment({"ADDED": "1"})
    assert not OTHERS & set(environment)
    assert set(environment) >= MACHINE | {"ADDED"}
    assert {name: environment[name] for name in process_module.GIVEN} == process_module.GIVEN
    clean_environment()  # libraries of this process start programs, too
    assert not OTHERS & set(os.environ)
    assert set(os.environ) >= MACHINE
    assert os.environ["GDRIVE_NON_INTERACTIVE"] == "1"  # DVC would wait for a browser


@pytest.mark.parametrize("name", process_module.FOLDERS)
def test_a_variable_that_names_no_folder_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """Its value and what is wrong are named; a folder that is still missing is made by whoever needs it."""
    monkeypatch.setenv(name, str(tmp_path / "later/still"))
    clean_environment()
    (tmp_path / "later").touch()
    with pytest.raises(
        HostError, match=f"{name} is {tmp_path}/later/still, and {tmp_path}/later is no folder"
    ) as caught:
        clean_environment()
    assert caught.value.remedy == f"correct {name}, or unset it."


def test_a_user_without_a_home_is_told_to_name_one() -> None:
    """A container may run as a user who is not in /etc/passwd."""
    code = (
        "import os; from lib.cli.app import app; from lib.cli.options import *; os.setuid(54321); run_command_line(app)"
    )
    environment = {name: value for name, value in os.environ.items() if name not in process_module.FOLDERS}
    done = subprocess.run([sys.executable, "-c", code, "check"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: this user has no home folder on this machine.\nWhat to do: set HOME to a folder.\n"


def test_git_settings_are_added_to_those_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A setting given by GIT_CONFIG_COUNT still holds in a command that gets settings of ours."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.theirs")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "1")
    ours = git_settings([("user.ours", "2"), ("user.theirs", "3")])
    listed = run_command(["git", "config", "--get-regexp", "^user[.](ours|theirs)"], cwd=tmp_path, env=ours).output
    assert listed.splitlines() == ["user.theirs 1", "user.ours 2", "user.theirs 3"]


def test_git_answers_in_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remedies are chosen by Git's words."""
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("LANGUAGE", "de")
    answer = run_command(
        ["sh", "-c", "echo $LC_ALL ${LANGUAGE-none}; git -C /nowhere status"], cwd=tmp_path, check=False
    )
    assert answer.output == "C.UTF-8 none\n"
    assert "cannot change to" in answer.errors


def test_a_command_runs_in_its_folder(tmp_path: Path) -> None:
    """The command's working folder is `cwd`."""
    assert run_command(["pwd", "-P"], cwd=tmp_path).output.strip() == str(tmp_path.resolve())


def test_text_is_the_standard_input_which_is_empty_by_default() -> None:
    """A program that asks a question reads the end of the file."""
    assert run_command(["cat"], text="é\n" * 50_000).output == "é\n" * 50_000
    assert run_command(["cat"]).output == ""


def test_git_never_prompts() -> None:
    """Git is told not to prompt: in a notebook it would wait forever."""
    assert run_command(["sh", "-c", "echo $GIT_TERMINAL_PROMPT"]).output == "0\n"


def test_output_that_is_not_utf_8_is_returned() -> None:
    """Undecodable bytes are replaced."""
    assert "abc" in run_command(["printf", "abc\\377\\376"]).output


def test_a_secret_is_shown_nowhere() -> None:
    """A secret is redacted in the output, in the error, and in the command that the error quotes."""
    answer = run_command(["sh", "-c", f"echo {SECRET}; echo {SECRET} >&2"], redact=redact)
    assert (answer.output, answer.errors) == ("***\n", "***\n")
    with pytest.raises(CommandFailed) as caught:
        run_command(["sh", "-c", f"echo {SECRET} >&2; exit 1"], redact=redact)
    assert SECRET not in f"{caught.value}{caught.value.args}{caught.value.answer}"
    with pytest.raises(CommandTimedOut) as late:
        run_command(["sh", "-c", f"sleep 600 # {SECRET}"], redact=redact, timeout=0.1)
    assert SECRET not in str(late.value)


@pytest.mark.parametrize("position", range(180, 202, 7))
def test_no_part_of_a_secret_is_left_in_a_shortened_argument(position: int) -> None:
    """An argument is redacted before it is shortened."""
    word = "x" * position + SECRET + "y" * 100
    with pytest.raises(CommandFailed) as caught:
        run_command(["false", word], redact=redact)
    assert "hunter2" not in str(caught.value)
    assert "y" * 100 not in str(caught.value)


def test_a_time_limit_ends_the_command_and_its_children(tmp_path: Path, pipe: int) -> None:
    """A command that exceeds its time limit is stopped with its children."""
    with pytest.raises(CommandTimedOut) as caught:
        run_command(["sh", "-c", f"exec 3>alive; {SLEEPER}"], cwd=tmp_path, timeout=1)
    assert (tmp_path / "child").exists()
    wait_until_all_are_gone(pipe)
    assert "gave no answer within 1 s" in str(caught.value)
    assert caught.value.remedy


def test_a_time_limit_kills_a_child_that_ignores_sigterm(tmp_path: Path, pipe: int) -> None:
    """A child that ignores SIGTERM is killed with SIGKILL, also after the shell has ended."""
    script = "exec 3>alive; (trap '' TERM; echo > child; while :; do sleep 0.1; done) & wait"
    with pytest.raises(CommandTimedOut):
        run_command(["sh", "-c", script], cwd=tmp_path, timeout=1)
    assert (tmp_path / "child").exists()
    wait_until_all_are_gone(pipe)


def test_an_interrupt_ends_the_command_and_its_children(tmp_path: Path, pipe: int) -> None:
    """Ctrl-C, which only this process receives, ends the command and its children."""
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


@pytest.mark.parametrize("kind", ["one", "parallel"])
def test_an_interrupt_while_a_command_is_started_ends_it(
    tmp_path: Path, pipe: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, kind: str
) -> None:
    """Ctrl-C arrives when the program runs already and its owner does not know it yet."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job may have it ignored
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    real = process_module._start

    def start(*given: Any, **options: Any) -> Any:
        started = real(*given, **options)
        while not (tmp_path / "child").exists():
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGINT)
        return started

    monkeypatch.setattr(process_module, "_start", start)
    command = ["sh", "-c", f"exec 3>alive; {SLEEPER}"]
    run: Callable[[], object] = partial(run_command, command, cwd=tmp_path)
    if kind == "parallel":
        run = partial(SideBySide, command, [{}], cwd=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run()
    wait_until_all_are_gone(pipe)


READER = ["sh", "-c", "read -r line || exit 0; echo $NAME $line; exit $STATUS"]


def test_parallel_processes_wait_for_their_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They print nothing before it, each has its own environment, and the statuses are in order."""
    (tmp_path / "beat").touch()
    waiting = SideBySide(READER, [{"NAME": name, "STATUS": "0"} for name in ("one", "two")], cwd=tmp_path)
    assert (len(waiting), waiting.are_alive, capsys.readouterr().out) == (2, True, "")
    assert waiting.run("go", beat=tmp_path / "beat", stall=60.0) == [0, 0]
    assert sorted(capsys.readouterr().out.splitlines()) == ["one go", "two go"]
    assert not waiting.are_alive


def test_parallel_processes_that_nobody_needs_any_more_end(tmp_path: Path, pipe: int) -> None:
    """They end with the object that a cell of the notebook has replaced."""
    command = ["sh", "-c", f"cd '{tmp_path}'; exec 3>alive; echo > begun; read -r line"]
    waiting = SideBySide(command, [{}], cwd=tmp_path)
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    del waiting
    wait_until_all_are_gone(pipe)


def test_a_followed_command_is_read_while_it_runs(tmp_path: Path) -> None:
    """Whole lines are yielded as they arrive, redacted; the last one also without a newline."""
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
    """`close` stops the program and its children, and ends the lines."""
    command = FollowedCommand(["sh", "-c", f"cd '{tmp_path}'; exec 3>alive; echo here; {SLEEPER}"])
    assert next(command.lines(60)) == "here"
    command.close()
    wait_until_all_are_gone(pipe)
    assert list(command.lines(60)) == []
