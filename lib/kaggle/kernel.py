"""Push a rendered notebook to Kaggle (a "kernel" there), with the kaggle client.

Every experiment has a kernel of its own, and every push makes a version of it, whose run is the version's session.

Guarantees: no push overwrites a public kernel, attaches a public or unfinished secrets dataset, or starts a second
session of a kernel. Success is read from the client's output, because it exits with 0 even after failures. Cannot:
detect the collaborators who can see a private kernel, or a push of the same kernel by another machine in the same
seconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lib.errors import KaggleError, PushRefusedError, RenderError
from lib.experiment.modules import Module
from lib.kaggle.client import ask, client_user, message, need, question
from lib.kaggle.notebook import KAGGLE_WORDS
from lib.process import MINUTE, CommandFailed, CommandTimedOut

LONGEST_TITLE = 50  # characters that Kaggle accepts
PROCESSING = 5 * MINUTE  # that a push waits for a new version of the secrets dataset
POLL = 10.0  # seconds between two questions while a push waits
SETTLING = 6  # questions for the newest version after a push without an answer
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
    found = need(f"the state of {kernel}", "kernel", kernel)
    if found is not None:
        _require_idle(kernel, found)
    _require_secrets(dataset, say)
    return found["newest"] if found else 0


def require_private(kernel: str, found: Mapping[str, Any]) -> None:
    """Raise `KaggleError` if a kernel, as `questions.py` describes it, is public."""
    if found["is_private"] is not True:
        raise KaggleError(
            f"the kernel {kernel} exists and is public: its log and output would be public too.",
            remedy=f"make it private (https://www.kaggle.com/code/{kernel}, Share), or delete it there.",
        )


def _require_idle(kernel: str, found: Mapping[str, Any]) -> None:
    require_private(kernel, found)
    for version, (state, _) in found["states"].items():
        if state in ACTIVE:
            raise KaggleError(
                f"version {version} of {kernel} is {ACTIVE[state]}, and a push would not stop it.",
                remedy=f"follow it (`uv run python -m lib watch {kernel}/{version}`), and push when it has ended. To "
                "stop it after its epoch, `uv run python -m lib stop EXPERIMENT`; at once, with --now, or cancel it at "
                f"https://www.kaggle.com/code/{kernel} (Versions). Checkpoints stay: a push with --resume goes on.",
            )


def _require_secrets(dataset: str, say: Callable[[str], None]) -> None:
    until, last = time.monotonic() + PROCESSING, ""
    while state := secrets_state(dataset, need(f"the state of the dataset {dataset}", "dataset", dataset)):
        if time.monotonic() > until:
            raise _unready(dataset, state)
        if state != last:
            minutes = f"{PROCESSING / MINUTE:.0f} minutes"
            say(f"Kaggle is still processing the dataset {dataset} ({state}); waiting up to {minutes} …")
            last = state
        time.sleep(POLL)


def secrets_state(dataset: str, found: Mapping[str, Any] | None) -> str:
    """Return Kaggle's state of a secrets dataset that is still being processed; empty if it can be attached.

    `found` is how `questions.py` describes it. Raises `KaggleError` if it is public, missing, failed or without
    secrets.json.
    """
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
    if found["state"] in ("failed", "deleted"):
        raise _unready(dataset, found["state"])
    if found["state"] != "ready":
        return str(found["state"])
    if "secrets.json" not in found["files"]:
        raise KaggleError(
            f"the dataset {dataset} has no file secrets.json.",
            remedy="add it (docs/setup.md), or name another dataset with --secrets-dataset OWNER/SLUG.",
        )
    return ""


def _unready(dataset: str, state: str) -> KaggleError:
    return KaggleError(
        f"the newest version of the dataset {dataset} is not ready: Kaggle reports {state!r}.",
        remedy=f"look at https://www.kaggle.com/datasets/{dataset}, and push when it can be opened there.",
    )


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
        output = ask("quota", "--format", "json").output
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

    Raises `PushRefusedError` if Kaggle has not accepted the push, and `KaggleError` if that is not known, or if the run
    starts without the secrets dataset.
    """
    try:
        answer = ask("kernels", "push", "-p", folder, timeout=5 * MINUTE)
    except (CommandFailed, CommandTimedOut) as failed:
        return _settle(kernel, newest, message(failed))
    lines = [line for line in (answer.output + answer.errors).splitlines() if line.strip()]
    done = re.search(r"Kernel version (?:(\S+) )?successfully pushed\..*?(https?://\S+)", answer.output)
    if done is None:
        reply = " ".join(lines) or "without a message"
        raise PushRefusedError(
            f"Kaggle refused the push of {kernel}: {reply}",
            passes=re.search("session count|quota", reply, re.IGNORECASE) is not None,
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
            version = (question("kernel", kernel, "newest") or {"newest": 0})["newest"]
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
    raise PushRefusedError(
        f"Kaggle did not accept the push of {kernel}: {message}",
        passes=True,
        state=f"nothing was pushed: {still}.",
        remedy="correct what the message names; if it names nothing, push again in some minutes: Kaggle limits how "
        "often that is possible.",
    )
