"""Push a rendered notebook to Kaggle (a "kernel" there) and follow its run to the end, with the kaggle client.

Every experiment has a kernel of its own, and every push makes a version of it, whose run is the version's session.

Guarantees: no push overwrites a public kernel, attaches a public or unfinished secrets dataset, or starts a second
session of a kernel. Success of a push or a run is read from the client's output, because the client exits with 0 even
after failures. A version is followed alone, whatever is pushed meanwhile. A key is never shown. Cannot: detect the
collaborators who can see a private kernel, or a push of the same kernel by another machine in the same seconds.

The client runs as a subprocess: inside this process it could not be given a time limit, and it could exit the process.
The client itself decides which key it uses (`KAGGLE_API_TOKEN`, `KAGGLE_USERNAME` and `KAGGLE_KEY`, `kaggle.json`, …).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from lib.errors import KaggleError, RenderError
from lib.experiment.modules import Module
from lib.kaggle.notebook import KAGGLE_WORDS, account_file
from lib.process import MINUTE, CommandFailed, CommandTimedOut, Completed, FollowedCommand, run_command
from lib.remotes.credentials import Credentials

PYTHON = (sys.executable, "-P")
CLIENT = (*PYTHON, "-m", "kaggle", "--no-warn")
QUESTIONS = (*PYTHON, str(Path(__file__).with_name("questions.py")))
ENVIRONMENT = {"VERBOSE": "", "VERBOSE_OUTPUT": ""}
"""The client's environment; danger: with `VERBOSE` set, the client prints every request, including the key."""
SETTINGS = "https://www.kaggle.com/settings/api"
LONGEST_TITLE = 50  # characters that Kaggle accepts
PATIENCE = 30 * MINUTE  # without a reply of Kaggle, after which a run is no longer followed
STILL = 10 * MINUTE  # without a new line, after which the log's connection is opened again
PROCESSING = 5 * MINUTE  # that a push waits for a new version of the secrets dataset
POLL = 10.0  # seconds between two questions while a push waits
SETTLING = 6  # questions for the newest version after a push without an answer
DRAIN = 10.0  # seconds to wait for remaining log lines when a run has ended
TAIL = 50  # last lines to show of the log if the run had already ended
UNFOLLOWED = "nothing is followed."
UNKNOWN = ("not found", "retrying")
ENDS = {"complete": "complete", "error": "error", "cancelacknowledged": "cancelled"}
"""Final states of a run: the client's word and ours."""
ACTIVE = {"queued": "queued", "running": "running", "cancelrequested": "being cancelled"}
"""The states of a run that uses a GPU session, or soon will."""
RETIRED = {"p100": "Kaggle has retired the P100: a push would run on T4 x2."}
"""The accelerators that only machines outside of Kaggle still have."""


# ── its name ────────────────────────────────────────────────────────────────────────────────────────────────────────


def kernel_title(key: str) -> str:
    """Return the title of the kernel of the experiment `key`, {module}-{slug}.

    Kaggle derives the kernel's slug from it. It has 5 to 50 characters; a cut one ends in a hash of the whole.
    """
    whole = f"train-{key}"
    if len(whole) > LONGEST_TITLE:
        mark = hashlib.sha256(whole.encode()).hexdigest()[:8]
        whole = f"{whole[: LONGEST_TITLE - len(mark) - 1].rstrip('-')}-{mark}"
    return whole.replace("-", " ").capitalize()


def kernel_name(key: str, owner: str) -> str:
    """Return the name on Kaggle, OWNER/SLUG, of the kernel of the experiment `key`."""
    return f"{owner}/{kernel_title(key).lower().replace(' ', '-')}"


def kernel_metadata(about: Module, key: str, accelerator: str, user: str, dataset: str) -> dict[str, Any]:
    """Return the metadata for `kaggle kernels push`: a private kernel with internet, GPU and the secrets dataset."""
    owner = user or "INSERT_KAGGLE_USERNAME_HERE"
    return {
        "id": kernel_name(key, owner),
        "title": kernel_title(key),
        "code_file": f"{about.notebook}.ipynb",
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": accelerator != "none",
        "enable_internet": True,
        "machine_shape": KAGGLE_WORDS[accelerator][1],
        "dataset_sources": [dataset or f"{owner}/kaggle-training-secrets"],
    }


# ── the client ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _environment() -> dict[str, str]:
    """Return what is added to the client's environment."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        text = account_file().read_text(encoding="utf-8")
        # the client takes a file that begins with a byte order mark for none
        if text.startswith("\ufeff") and not {"KAGGLE_API_TOKEN", "KAGGLE_KEY"} & set(os.environ):
            account = json.loads(text[1:])
            return ENVIRONMENT | {"KAGGLE_USERNAME": account["username"], "KAGGLE_KEY": account["key"]}
    return ENVIRONMENT


def _ask(*words: str | Path, program: tuple[str, ...] = CLIENT, timeout: float = MINUTE) -> Completed:
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
        env, redact = _environment(), Credentials().redact
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


def _message(failed: CommandFailed | CommandTimedOut) -> str:
    """Return the client's error message without the command line."""
    if isinstance(failed, CommandTimedOut):
        return failed.what
    return (failed.answer.errors.strip() or failed.answer.output.strip() or failed.what)[-1000:]


def _question(*words: str) -> Any:  # noqa: ANN401  JSON
    """Return the answer of `questions.py`; None for an object that is missing or that the key may not read."""
    return json.loads(_ask(*words, program=QUESTIONS).output.splitlines()[-1])  # below warnings of the client's


# ── before a push ───────────────────────────────────────────────────────────────────────────────────────────────────


def refuse_retired(accelerator: str, *, push: bool) -> None:
    """Print a warning for an accelerator that Kaggle has retired; for a push, raise `RenderError`."""
    if accelerator in RETIRED:
        if push:
            raise RenderError(
                RETIRED[accelerator],
                state="nothing was written or pushed.",
                remedy="push with --accelerator t4x2; a notebook for a machine with a P100 is rendered without --push.",
            )
        print(f"Warning:  {RETIRED[accelerator]}")


def pushing_user(given: str, repository: str) -> str:
    """Return the owner of a kernel to push. Raises `RenderError` if Kaggle cannot clone `repository`."""
    if not repository.startswith(("https://", "http://")):
        raise RenderError(
            f"Kaggle cannot clone {repository}.",
            state="nothing was written or pushed.",
            remedy="push the repository to a host that Kaggle reaches by https, as `origin`.",
        )
    own = client_user()
    return given or own


def client_user() -> str:
    """Return the user name that the client's key belongs to. Raises `KaggleError` if it is unknown."""
    found = re.search(r"^- username: (?!None$)(\S+)$", _ask("config", "view").output, re.MULTILINE)
    if found is None:
        raise KaggleError(
            "the kaggle client has a key, but does not report whose.",
            state="nothing was done on Kaggle.",
            remedy="set KAGGLE_USERNAME.",
        )
    return found[1]


def require_pushable(kernel: str, dataset: str, *, say: Callable[[str], None]) -> int:
    """Return the newest version of `kernel`, 0 if there is none yet; wait for a dataset that is still being processed.

    Raises `KaggleError` if a push would start a second session, overwrite a public kernel, or attach a secrets dataset
    that is public, missing, unfinished or without secrets.json.
    """
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", dataset):
        raise KaggleError(
            f"--secrets-dataset {dataset!r} is not the name of a Kaggle dataset.",
            remedy="give it as OWNER/SLUG, as in its address.",
        )
    found = _need(f"the state of {kernel}", "kernel", kernel)
    if found is not None:
        _require_idle(kernel, found)
    _require_secrets(dataset, say)
    return found["newest"] if found else 0


def _require_idle(kernel: str, found: dict[str, Any]) -> None:
    if found["is_private"] is not True:
        raise KaggleError(
            f"the kernel {kernel} exists and is public: its log and output would be public too.",
            remedy=f"make it private (https://www.kaggle.com/code/{kernel}, Share), or delete it there.",
        )
    for version, (state, _) in found["states"].items():
        if state in ACTIVE:
            raise KaggleError(
                f"version {version} of {kernel} is {ACTIVE[state]}, and a push would not stop it.",
                remedy=f"follow it (`uv run python -m lib watch {kernel}/{version}`), and push when it has ended. To "
                f"stop it, cancel it at https://www.kaggle.com/code/{kernel} (Versions), or delete the kernel with its "
                f"logs and outputs (`uv run kaggle kernels delete {kernel}`). Checkpoints stay: the next push resumes.",
            )


def _require_secrets(dataset: str, say: Callable[[str], None]) -> None:
    until, last = time.monotonic() + PROCESSING, ""
    while (found := _need(f"the state of the dataset {dataset}", "dataset", dataset)) and found["is_private"]:
        state = found["state"]
        if state == "ready":
            break
        if state in ("failed", "deleted") or time.monotonic() > until:
            raise KaggleError(
                f"the newest version of the dataset {dataset} is not ready: Kaggle reports {state!r}.",
                remedy=f"look at https://www.kaggle.com/datasets/{dataset}, and push when it can be opened there.",
            )
        if state != last:
            minutes = f"{PROCESSING / MINUTE:.0f} minutes"
            say(f"Kaggle is still processing the dataset {dataset} ({state}); waiting up to {minutes} …")
            last = state
        time.sleep(POLL)
    if found is None:
        raise KaggleError(
            f"there is no dataset {dataset} on Kaggle that this key may read.",
            remedy="make a private Kaggle dataset of this name with secrets.json in it (docs/setup.md), "
            "or name yours with --secrets-dataset OWNER/SLUG.",
        )
    if not found["is_private"]:
        raise KaggleError(
            f"the dataset {dataset} is public: everybody can read the credentials in it.",
            remedy=f"make it private (https://www.kaggle.com/datasets/{dataset}/settings) and replace every "
            "credential in it with a new one.",
        )
    if "secrets.json" not in found["files"]:
        raise KaggleError(
            f"the dataset {dataset} has no file secrets.json.",
            remedy="add it (docs/setup.md), or name another dataset with --secrets-dataset OWNER/SLUG.",
        )


def _need(what: str, *words: str, state: str = "") -> Any:  # noqa: ANN401  JSON
    """Return the answer to a question. Raises `KaggleError` if Kaggle does not answer."""
    try:
        return _question(*words)
    except (CommandFailed, CommandTimedOut) as failed:
        what = f"Kaggle does not report {what}: {_message(failed)}"
        raise KaggleError(what, state=state, remedy="try again later.") from None


class Quota(NamedTuple):
    """The GPU hours that are left of the week, those of a week, and when they are renewed."""

    left: float
    total: float
    renewed: str

    def __str__(self) -> str:
        return f"{self.left:.2f}h of {self.total:.2f}h left until {self.renewed or 'it is renewed'}"


def gpu_quota() -> Quota | None:
    """Return the remaining GPU hours; None if Kaggle does not report them."""
    try:
        output = _ask("quota", "--format", "json").output
        (gpu,) = [row for row in json.loads(output[output.index("[") :]) if row["resource"] == "GPU"]
        left, total = (float(gpu[name].removesuffix("h")) for name in ("remaining", "total"))
        return Quota(left, total, gpu["refreshAt"])
    except (CommandFailed, CommandTimedOut, ValueError, KeyError, TypeError, AttributeError):
        return None


# ── the push ────────────────────────────────────────────────────────────────────────────────────────────────────────


def push_rendered(folder: Path, needed: float = 0.0) -> None:
    """Push the rendered notebook in a folder, which starts its run, and print what happens and how to follow it.

    `needed` is the number of GPU hours without which its session would leave nothing. Raises `KaggleError` if fewer are
    left, if the push is refused by `require_pushable` or by Kaggle, or if its outcome is unknown.
    """
    metadata = json.loads((folder / "kernel-metadata.json").read_text(encoding="utf-8"))
    kernel: str = metadata["id"]
    newest = require_pushable(kernel, *metadata["dataset_sources"], say=lambda line: print(line, flush=True))
    if quota := gpu_quota():
        print(f"GPU:      {quota}", flush=True)
        if quota.left < needed:
            raise KaggleError(
                f"{quota.left:.1f} GPU hours are left, and a session needs about {needed:.1f} to get beyond its newest "
                "checkpoint.",
                remedy=f"push when they are renewed ({quota.renewed or 'each week'}), or all the same with --anyway.",
            )
    pushed, report = push_kernel(folder, kernel, newest)
    print(f"{report}\nFollow it with: uv run python -m lib watch {pushed}")


def push_kernel(folder: Path, kernel: str, newest: int) -> tuple[str, str]:
    """Push the notebook in a folder as the next version after `newest`; return OWNER/SLUG/VERSION and a report.

    Raises `KaggleError` if Kaggle refuses the push, if it is not known whether it was pushed, or if the run starts
    without the secrets dataset.
    """
    try:
        answer = _ask("kernels", "push", "-p", folder, timeout=5 * MINUTE)
    except (CommandFailed, CommandTimedOut) as failed:
        return _settle(kernel, newest, _message(failed))
    lines = [line for line in (answer.output + answer.errors).splitlines() if line.strip()]
    done = re.search(r"Kernel version (?:(\S+) )?successfully pushed\..*?(https?://\S+)", answer.output)
    if done is None:
        reply = " ".join(lines) or "without a message"
        raise KaggleError(
            f"Kaggle refused the push of {kernel}: {reply}",
            remedy="wait until one of your sessions has ended, or stop one (Kaggle, View Active Events)."
            if "session count" in reply
            else "correct what it reports; a first push may need a verified phone number (Kaggle, Settings).",
        )
    address = done[2]
    if lost := [line for line in lines if "not valid dataset sources" in line]:
        raise KaggleError(
            f"Kaggle did not attach the secrets dataset: {' '.join(lost)}",
            state=f"the kernel was pushed without it and runs: {address}",
            remedy="stop it there, and push again when the dataset is ready and shared with the kernel's owner.",
        )
    notes = [line for line in lines if done[0] not in line]  # mostly warnings
    named = "/".join(address.rstrip("/").split("/")[-2:])
    if named != kernel:
        notes.append(f"Kaggle runs it under another name than {kernel}: look for it there.")
    version = done[1] or newest + 1
    report = [f"Pushed:   version {version} of {named}", f"Address:  {address}"]
    return f"{named}/{version}", "\n".join([*report, *(f"Note:     {note}" for note in notes)])


def _settle(kernel: str, newest: int, message: str) -> tuple[str, str]:
    """Return what `push_kernel` returns for a push without an answer, from the kernel's newest version on Kaggle."""
    address = f"https://www.kaggle.com/code/{kernel}"
    print(f"Kaggle gave no answer to the push; asking for the newest version of {kernel} …", flush=True)
    is_known = False
    for attempt in range(SETTLING):
        time.sleep(POLL if attempt else 0)
        is_known = False  # the last answer counts: an accepted version may appear late
        with contextlib.suppress(CommandFailed, CommandTimedOut, KaggleError):
            version = (_question("kernel", kernel, "newest") or {"newest": 0})["newest"]
            is_known = True
            if version > newest:
                lost = f"Kaggle's answer was lost ({message.splitlines()[0]}); version {version} is new."
                report = f"Pushed:   version {version} of {kernel}\nAddress:  {address}\nNote:     {lost}"
                return f"{kernel}/{version}", report
    if not is_known:
        raise KaggleError(
            f"Kaggle did not confirm the push of {kernel}: {message}",
            state="it is not known whether it was pushed: Kaggle does not report its versions either.",
            remedy=f"look at {address} before you push again.",
        )
    still = f"its newest version is still {newest}" if newest else "there is no such kernel"
    raise KaggleError(
        f"Kaggle did not accept the push of {kernel}: {message}",
        state=f"nothing was pushed: {still}.",
        remedy="correct what the message names; if it names nothing, push again in some minutes: Kaggle limits how "
        "often that is possible.",
    )


# ── its run ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Log:
    """A kernel's log that yields each line once, although the client restarts at the first line on each connection."""

    def __init__(self, kernel: str) -> None:
        self.kernel = kernel
        self._client: FollowedCommand | None = None
        self._active_at = 0.0
        self._at, self._shown = 0, 0

    def new_lines(self, wait: float) -> Iterator[str]:
        """Yield the new lines of the next `wait` seconds; ends earlier if the client considers the log complete."""
        # a connection lost while the machine was asleep would stay silent forever
        if self._client is None or self._client.has_ended or time.monotonic() - self._active_at > STILL:
            self.close()
            command = [*CLIENT, "kernels", "logs", "--follow", self.kernel]
            self._client = FollowedCommand(command, env=_environment(), redact=Credentials().redact)
            self._active_at, self._at = time.monotonic(), 0
        for line in self._client.lines(wait):
            self._active_at = time.monotonic()
            yield from self._if_new(line)

    def rest(self) -> Iterator[str]:
        """Yield the lines of an ended run's log that were not yielded before."""
        try:
            text = _ask("kernels", "logs", self.kernel, timeout=5 * MINUTE).output
        except (CommandFailed, CommandTimedOut) as failed:
            yield f"Kaggle does not return the log: {_message(failed)}"
            return
        self._at = 0
        for line in _lines_of_log(text):
            yield from self._if_new(line)

    def _if_new(self, line: str) -> Iterator[str]:
        self._at += 1
        if self._at > self._shown:
            self._shown = self._at
            yield line.rpartition("\r")[2]  # the last state of a self-overwriting progress bar

    def close(self) -> None:
        """Stop the client's subprocess."""
        if self._client is not None:
            self._client.close()


def _lines_of_log(text: str) -> list[str]:
    """Return the lines of a log in Kaggle's stored form: the streamed events as JSON."""
    try:
        events = [str(event["data"]) for event in json.loads(text) if event.get("data") is not None]
    except (ValueError, KeyError, TypeError, AttributeError):
        return text.strip().splitlines()
    return "".join(data if data.endswith("\n") else f"{data}\n" for data in events).split("\n")[:-1]


def watch_kernel(kernel: str, *, every: float, say: Callable[[str], None]) -> str | None:
    """Follow one version of a kernel to the end of its run and return the branch it published.

    `kernel` is OWNER/SLUG, which means the version that is the newest now, or OWNER/SLUG/VERSION. Polls the state every
    `every` seconds and passes new states and log lines to `say`. The returned branch is the last one in the log, None
    if it names none. Raises `KaggleError` if the run fails or is cancelled, if the kernel or version does not exist or
    is deleted, and if Kaggle does not answer for `PATIENCE` seconds.
    """
    kernel, version, found = _find_version(kernel)
    name = f"{kernel}/{version}"
    say(f"Following version {version} of {kernel}: https://www.kaggle.com/code/{kernel}")
    begun, was_running, shown, state, reason = time.monotonic(), False, "", "", ""
    lines: list[str] = []

    def say_state(state: str, reason: str) -> None:
        passed = timedelta(seconds=int(time.monotonic() - begun))
        say(f"[{passed!s:0>8}] {ENDS.get(state, state)}{reason and f': {reason}'}")

    with contextlib.closing(_Log(name)) as log:
        for state, reason in _states(kernel, version, found, every, say):
            if state in ENDS:
                break
            if state != shown:
                say_state(state, reason)
                shown = state
            if state != "queued":
                was_running = True
                for line in log.new_lines(every):
                    say(line)
                    lines.append(line)
        # the stream may end before the stored log is complete, and the reverse
        last = [*(log.new_lines(DRAIN) if was_running else ()), *log.rest()]
    if not was_running and len(last) > TAIL:
        say(f"The last {TAIL} of {len(last)} lines of its log:")
    for line in last if was_running else last[-TAIL:]:
        say(line)
    say_state(state, reason)
    if state != "complete":
        raise KaggleError(
            f"the run of {name} ended as: {ENDS[state]}{f' ({reason})' if reason else ''}.",
            state="its log is above; `python -m lib status` shows the checkpoints that it uploaded.",
            remedy="correct what the log reports and push again: the run resumes from its newest checkpoint.",
        )
    branches = re.findall(r"\bkaggle-train-[\w.-]+-\d{8}-\d{6}\b", "\n".join(lines + last))
    return branches[-1] if branches else None


def _find_version(name: str) -> tuple[str, int, dict[str, Any]]:
    """Return the kernel, the version that OWNER/SLUG or OWNER/SLUG/VERSION names, and its state.

    Raises `KaggleError`, also if Kaggle does not answer.
    """
    named = re.fullmatch(r"([^/\s]+/[^/\s]+?)(?:/v?([1-9]\d*))?/?", name)
    if named is None:
        raise KaggleError(
            f"{name!r} is not the name of a kernel.",
            state=UNFOLLOWED,
            remedy="give OWNER/SLUG or OWNER/SLUG/VERSION, as in its address, or an experiment's file.",
        )
    kernel, given = named.groups()
    found = _need(f"the state of {kernel}", "kernel", kernel, given or "newest", state=UNFOLLOWED)
    if found is None:
        raise KaggleError(
            f"there is no kernel {kernel} on Kaggle that this key may read.",
            state=UNFOLLOWED,
            remedy="push it first (render.py MODULE --push), or name its owner with --kaggle-user.",
        )
    version = int(given or found["newest"])
    if version > found["newest"]:
        raise KaggleError(
            f"version {version} of {kernel} does not exist.",
            state=UNFOLLOWED,
            remedy=f"name another one; the newest is {kernel}/{found['newest']}.",
        )
    return kernel, version, found


def _states(
    kernel: str, version: int, found: dict[str, Any], every: float, say: Callable[[str], None]
) -> Iterator[tuple[str, str]]:
    """Yield the state of a version and its reason, first of the answer `found`, then every `every` seconds."""
    state, reason = found["states"].get(str(version), UNKNOWN)
    newest, missing = found["newest"], 0
    answered_at = now = time.monotonic()
    while True:
        yield state, reason
        time.sleep(max(0.0, every - (time.monotonic() - now)))
        now = time.monotonic()
        try:
            found = _question("kernel", kernel, str(version)) or {"newest": 0, "states": {}}
        except (CommandFailed, CommandTimedOut) as failed:
            if now - answered_at > PATIENCE:
                raise KaggleError(
                    f"Kaggle does not answer: {_message(failed)}",
                    state="the run continues, but is no longer followed.",
                    remedy=f"follow it again later, or look at https://www.kaggle.com/code/{kernel}.",
                ) from None
            state, reason = "no answer", f"{_message(failed).splitlines()[0]}; retrying"
            continue
        answered_at = now
        state, reason = found["states"].get(str(version), UNKNOWN)
        missing = missing + 1 if (state, reason) == UNKNOWN else 0
        if missing > 1:  # the first may be an error of Kaggle's, or a version that was pushed just now
            raise KaggleError(
                f"Kaggle has no run of version {version} of {kernel}: the kernel was deleted, which ended its runs, or "
                "the version was saved without running it.",
                state="the log is gone; `python -m lib status` shows the checkpoints that a run uploaded.",
                remedy="push again: the run resumes from its newest checkpoint.",
            )
        if found["newest"] > newest:
            newest = found["newest"]
            say(f"Version {newest} was pushed meanwhile; this follows version {version}.")
