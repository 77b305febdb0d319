"""Run the kaggle client, and ask Kaggle with its key.

Guarantees: the client runs as a subprocess: inside this process it could not be given a time limit, and it could exit
the process. A key is never shown. The client itself decides which key it uses (`KAGGLE_API_TOKEN`, `KAGGLE_USERNAME`
and `KAGGLE_KEY`, `kaggle.json`, …). Cannot: see a failure after which the client exits with 0; callers read its output.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib.errors import KaggleError
from lib.kaggle.notebook import account_file
from lib.process import MINUTE, CommandFailed, CommandTimedOut, Completed, run_command
from lib.remotes.credentials import Credentials

PYTHON = (sys.executable, "-P")
CLIENT = (*PYTHON, "-m", "kaggle", "--no-warn")
QUESTIONS = (*PYTHON, str(Path(__file__).with_name("questions.py")))
ENVIRONMENT = {"VERBOSE": "", "VERBOSE_OUTPUT": ""}
"""The client's environment; danger: with `VERBOSE` set, the client prints every request, including the key."""
SETTINGS = "https://www.kaggle.com/settings/api"


def client_environment() -> dict[str, str]:
    """Return what is added to the client's environment."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        text = account_file().read_text(encoding="utf-8")
        # the client takes a file that begins with a byte order mark for none
        if text.startswith("\ufeff") and not {"KAGGLE_API_TOKEN", "KAGGLE_KEY"} & set(os.environ):
            account = json.loads(text[1:])
            return ENVIRONMENT | {"KAGGLE_USERNAME": account["username"], "KAGGLE_KEY": account["key"]}
    return ENVIRONMENT


def ask(*words: str | Path, program: tuple[str, ...] = CLIENT, timeout: float = MINUTE) -> Completed:
    """Run a command of the kaggle client, or another program that uses its key, and return its output.

    Raises `KaggleError` without a client or a valid key, else the errors of `run_command`.
    """
    if importlib.util.find_spec("kaggle") is None:
        raise KaggleError(
            "the kaggle client is not installed.",
            state="no request was sent to Kaggle.",
            remedy="run this with `uv run`, which installs it, or `pip install kaggle`.",
        )
    try:
        env, redact = client_environment(), Credentials().redact
        return run_command([*program, *words], env=env, timeout=timeout, redact=redact)
    except CommandFailed as failed:
        # the client prints this both without a key and for a key that Kaggle rejects
        if "Authentication required" in failed.answer.output:
            raise KaggleError(
                "the kaggle client has no key, or Kaggle rejects the one it has.",
                state="nothing was done on Kaggle.",
                remedy=f"make a token at {SETTINGS} and set KAGGLE_API_TOKEN to it, or `uv run kaggle auth login`.",
            ) from None
        errors = _without_frames(failed.answer.errors)
        if "Invalid header value" in errors or "codec can't encode" in errors:
            raise KaggleError(
                "the kaggle client's key holds a line break, or a character that no key has.",
                state="no request was sent to Kaggle.",
                remedy="write it alone and in one line (KAGGLE_API_TOKEN, ~/.kaggle/access_token or kaggle.json).",
            ) from None
        raise CommandFailed(failed.command, replace(failed.answer, errors=errors)) from None


def _without_frames(errors: str) -> str:
    """Return an error output in which a Python traceback is its last part, the error itself."""
    before, found, trace = errors.rpartition("Traceback (most recent call last):\n")
    return "".join(line for line in trace.splitlines(True) if not line.startswith(" ")) if found else before + trace


def message(failed: CommandFailed | CommandTimedOut) -> str:
    """Return the client's error message without the command line."""
    if isinstance(failed, CommandTimedOut):
        return failed.what
    return (failed.answer.errors.strip() or failed.answer.output.strip() or failed.what)[-1000:]


def question(*words: str) -> Any:  # noqa: ANN401  JSON
    """Return the answer of `questions.py`; None for an object that is missing or that the key may not read."""
    return json.loads(ask(*words, program=QUESTIONS).output.splitlines()[-1])  # below warnings of the client's


def need(what: str, *words: str, state: str = "") -> Any:  # noqa: ANN401  JSON
    """Return the answer to a question. Raises `KaggleError` if Kaggle does not answer."""
    try:
        return question(*words)
    except (CommandFailed, CommandTimedOut) as failed:
        what = f"Kaggle does not report {what}: {message(failed)}"
        raise KaggleError(what, state=state, remedy="try again later.") from None


def client_user() -> str:
    """Return the user name that the client's key belongs to. Raises `KaggleError` if it is unknown."""
    found = re.search(r"^- username: (?!None$)(\S+)$", ask("config", "view").output, re.MULTILINE)
    if found is None:
        raise KaggleError(
            "the kaggle client has a key, but does not report whose.",
            state="nothing was done on Kaggle.",
            remedy="set KAGGLE_USERNAME.",
        )
    return found[1]
