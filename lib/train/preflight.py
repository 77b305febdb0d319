"""Check everything that a run needs before it costs time: one table, each line ok, a warning or an error.

Guarantees: write access is proven by writing (`lib.sync.rehearse`), a GPU by computing on it; all checks run in
parallel, a failing check stops no other, and none can hang. No check leaves anything behind. Cannot: promise that a
token, a quota or a GPU is still available hours later, or know how long an epoch takes before one was trained.
"""

from __future__ import annotations

import json
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lib.data.dataset import INPUTS, find_mirrors, read_pointer
from lib.errors import CommandError, PreflightError, RemoteError, RunError
from lib.experiment.schema import Experiment
from lib.kaggle.host import SESSION, find_host
from lib.process import run_command
from lib.progress import file_size
from lib.remotes.accounts import check_drive, check_github, check_wandb
from lib.remotes.clone import find_git_remote, find_remotes, require_committed, set_up_copy
from lib.remotes.credentials import Credentials
from lib.remotes.messages import check_addresses
from lib.session import HOUR, Session
from lib.sync.stores.places import find_missing
from lib.tables import as_text, make_table
from lib.train.launch import prepare_library
from lib.train.weights import find_weights, read_start

State = Literal["ok", "warning", "error"]
ACCELERATORS: Mapping[str, tuple[str, ...]] = {"t4x2": ("T4", "T4"), "p100": ("P100",), "none": ()}
"""The accelerators that a run may be rendered for, each with a word of every GPU's name."""
WEIGHTS_SIZE = {"n": 6, "s": 20, "m": 42, "l": 54, "x": 118}
"""Size in MiB of a finished `.pt`, by the architecture's size; with its optimizer it is four times as large."""
SMALL = 2**31  # bytes that must stay free beyond the estimated need; less causes a warning
PUBLISHED = (
    "test/worst.png", "test/predictions.json", "train/args.yaml", "train/results.csv", "README.md",
    "train/weights/best.pt.dvc", "train/weights/.gitignore", ".gitattributes",
)  # fmt: skip
"""A file of each kind that a run commits, below its folder; the first one is of the kind of the largest."""
LONGEST = 600  # characters of a finding in the error message; the table shows all of it
TIMEOUT = 180.0  # seconds for torch's import and first kernel

# Compute on every GPU: a torch build without kernels for a GPU fails only when that GPU is used.
_TRY_GPUS = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "builds": torch.cuda.get_arch_list(), "gpus": []}
for number in range(torch.cuda.device_count()):
    about = torch.cuda.get_device_properties(number)
    gpu = {"name": about.name, "memory": about.total_memory, "capability": f"sm_{about.major}{about.minor}"}
    try:
        ones = torch.ones(64, 64, device=f"cuda:{number}")
        gpu["works"] = bool(((ones @ ones) == 64).all().item())
    except Exception as error:
        gpu["error"] = str(error).splitlines()[0]
    found["gpus"].append(gpu)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Line:
    """The finding of one check; `remedy` names the fix unless the state is ok."""

    name: str
    state: State
    found: str
    remedy: str = ""


def preflight(session: Session) -> list[Line]:
    """Run all checks in parallel and return their lines; an exception of a check becomes its line."""
    prepare_library(session.scratch)
    checks: tuple[tuple[str, Callable[[Session], Iterator[Line]], State], ...] = (
        ("GPU", _check_gpus, "error"),
        ("batch", _check_batch, "error"),
        ("remotes", _check_remotes, "error"),
        ("dataset", _check_dataset, "error"),
        ("Drive account", _check_drive, "error"),
        ("Git account", _check_github, "warning"),  # the API's answer is only a hint; the rehearsal is the proof
        ("W&B", _check_wandb, "warning"),  # missing curves must never stop a training
        ("messages", _check_messages, "error"),
        ("weights", _check_weights, "error"),
        ("disk", _check_disk, "error"),
        ("session", _check_session, "error"),
    )

    def run(name: str, check: Callable[[Session], Iterator[Line]], failed: State) -> list[Line]:
        lines: list[Line] = []
        try:
            lines.extend(check(session))
        except RunError as error:
            lines.append(_wrong(name, error, failed))
        except Exception as error:  # noqa: BLE001  a broken check is a finding and must not stop the others
            cause = session.credentials.redact(f"{type(error).__name__}: {error}")
            lines.append(Line(name, "error", f"it could not be checked: {cause}", "see run.log and run again"))
        return lines

    with ThreadPoolExecutor(len(checks), thread_name_prefix="preflight") as pool:
        return [line for lines in pool.map(lambda item: run(*item), checks) for line in lines]


def preflight_here(root: Path, experiment: Experiment, credentials: Credentials, accelerator: str) -> list[Line]:
    """Check from the clone at `root` what a session would check, without changing the clone.

    The checks run in a copy that is set up like a session: with the remotes of the commit and the credentials of
    `secrets.json`.
    """
    with set_up_copy(root, credentials) as (copy, scratch):
        host = find_host(root, scratch)
        lines = preflight(Session(copy, root, scratch, experiment, credentials, host, accelerator=accelerator))
    return [*_check_committed(root), *lines]


def show_preflight(lines: list[Line]) -> str:
    """Return the lines as a table for the user."""
    signs = {"ok": "  ok     ", "warning": "  WARNING", "error": "  ERROR  "}
    rows = []
    for line in lines:
        found = [text.strip() for text in line.found.strip().splitlines()]
        rows.append((signs[line.state], line.name, "\n".join(found + [f"→ {line.remedy}"] * bool(line.remedy))))
    # a finding and its remedy are a line each, however long: they hold addresses and commands
    return as_text(make_table(("", "", ""), rows, ruled=False), width=10_000).removeprefix("\n")


def stop_on_errors(lines: list[Line]) -> None:
    """Raise one `PreflightError` that lists every error among `lines`, if there is any."""
    wrong = [line for line in lines if line.state == "error"]
    if wrong:
        raise PreflightError(
            "; ".join(f"{line.name}: {' '.join(line.found.split())[:LONGEST].rstrip('.')}" for line in wrong) + ".",
            state="nothing was pulled, trained or published.",
            remedy=" ".join(f"{line.name}: {line.remedy.rstrip('.')}." for line in wrong),
        )


def _wrong(name: str, error: RunError, state: State = "error") -> Line:
    return Line(name, state, error.what, error.remedy or "correct the cause and run again")


# ── the machine ────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_gpus(session: Session) -> Iterator[Line]:
    wanted = ACCELERATORS[session.accelerator]
    choose = "choose GPU T4 x2 in the notebook's settings (Session options → Accelerator) and run again"
    if not session.host.gpus:
        if wanted and session.host.on_kaggle:
            yield Line("GPU", "error", f"rendered for {session.accelerator}, and there is none", choose)
        else:
            yield Line("GPU", "ok", f"none: training runs on {session.host.describe()}")
        return
    try:
        answer = run_command([sys.executable, "-c", _TRY_GPUS], timeout=TIMEOUT)
        found = json.loads(answer.output.splitlines()[-1])
    except (CommandError, ValueError, IndexError) as error:
        yield Line("GPU", "error", f"torch cannot be used: {error}", "restart the session and run again")
        return
    yield from judge_gpus(found, len(session.host.gpus), wanted, multi_gpu=session.experiment.hardware.multi_gpu)


def judge_gpus(found: Mapping[str, Any], driven: int, wanted: tuple[str, ...], *, multi_gpu: bool) -> Iterator[Line]:
    """Yield the findings about the GPUs from torch's report on them.

    `found` has `torch`, `cuda`, `builds` (architectures that torch was built for) and `gpus`. Each GPU has `name`,
    `memory` (bytes), `capability` and either `works` or `error`. `driven` is the number of GPUs that the driver sees.
    """
    gpus = found["gpus"]
    build = f"torch {found['torch']} for CUDA {found['cuda']}"
    if len(gpus) < driven:
        yield Line(
            "GPU", "error", f"the driver sees {driven}, {build} uses {len(gpus)}", "restart the session and run again"
        )
    for number, gpu in enumerate(gpus):
        about = f"{gpu['name']}, {gpu['memory'] / 2**30:.1f} GiB, {gpu['capability']}"
        if gpu.get("works"):
            yield Line(f"GPU {number}", "ok", f"{about}: computes with {build}")
        else:
            cause = gpu.get("error", "a matrix product was wrong")
            builds = ", ".join(found["builds"]) or "no GPU"
            yield Line(
                f"GPU {number}", "error", f"{about}: {build} has no kernels for it (built for {builds}): {cause}",
                "choose GPU T4 x2 in the notebook's settings and run again",
            )  # fmt: skip
    names = [gpu["name"] for gpu in gpus]
    if wanted and [word for word, name in zip(wanted, names, strict=False) if word in name] != list(wanted):
        yield Line(
            "GPU", "warning", f"rendered for {len(wanted)} x {wanted[0]}, found {', '.join(names) or 'none'}",
            "training takes what is here; for two T4 choose GPU T4 x2 in the notebook's settings",
        )  # fmt: skip
    elif len(gpus) > 1 and not multi_gpu:
        yield Line("GPU", "ok", f"hardware.multi_gpu is false: one of {len(gpus)} is used")


def _check_batch(session: Session) -> Iterator[Line]:
    count, batch = len(session.device.split(",")), session.experiment.training.batch_size
    if batch < count:
        text = f"training.batch_size is {batch}, and {count} GPUs train in parallel"
        yield Line("batch", "error", text, "give each GPU at least one image, or set hardware.multi_gpu: false")
    elif batch % count:
        text = f"training.batch_size is {batch}: each of {count} GPUs takes {batch // count}"
        yield Line("batch", "warning", text, f"make it a multiple of {count}")


def _check_disk(session: Session) -> Iterator[Line]:
    needs = {
        session.working: ("working folder", 2 * planned_upload(session.experiment)),
        # twice the size of the dataset: DVC keeps a copy of each file in its cache
        session.scratch: ("scratch folder", 2 * (read_pointer(session.root, session.experiment).size or 0)),
    }
    for folder, (name, needed) in needs.items():
        free = shutil.disk_usage(folder).free
        text = f"{folder}: {file_size(free)} free, about {file_size(needed)} needed"
        if free < needed:
            yield Line(name, "error", text, "remove what is not needed there, or name another folder")
        elif free < needed + SMALL:
            yield Line(name, "warning", text, "it may become tight: remove what is not needed there")
        else:
            yield Line(name, "ok", text)


def _check_session(session: Session) -> Iterator[Line]:
    most = session.experiment.session.max_hours
    ends = [hours * HOUR for hours in (most,) if hours] + [SESSION] * session.host.on_kaggle
    if not ends:
        yield Line("session", "ok", "session.max_hours is null, and this machine ends no session")
        return
    left = min(ends) - session.elapsed
    epochs = session.experiment.training.epochs
    text = f"{left / HOUR:.1f} h left to train: {epochs} epochs fit if one takes less than {left / epochs / 60:.1f} min"
    if left < HOUR and session.host.on_kaggle:
        yield Line("session", "warning", text, "start a new session: this one ends soon")
    elif min(ends) == SESSION:
        yield Line(
            "session", "warning", f"{text}; session.max_hours is {most or 'null'}, and Kaggle ends it after 12 h",
            "set session.max_hours to 11, so that evaluation and publication have their time",
        )  # fmt: skip
    else:
        yield Line("session", "ok", text)


# ── the remotes and accounts ───────────────────────────────────────────────────────────────────────────────────────


def planned_upload(experiment: Experiment) -> int:
    """Return the estimated bytes of a publication's weights: the best ones, and a checkpoint with its optimizer."""
    size = experiment.model.architecture.removeprefix("yolo11")[0]
    return 5 * WEIGHTS_SIZE[size] * 2**20


def _check_remotes(session: Session) -> Iterator[Line]:
    from lib.sync import rehearse

    notes: list[str] = []
    experiment = session.experiment
    found = rehearse(
        session.root, session.credentials,
        names=[f"{experiment.artifacts}/{name}" for name in PUBLISHED],
        title=f"{experiment.about.title}: {experiment.name}, rehearsal",
        say=notes.append,
    )  # fmt: skip
    for name, result in (("Git remote", found.git), ("DVC remote", found.dvc)):
        yield _wrong(name, result) if isinstance(result, RunError) else Line(name, "ok", result)
    needed = planned_upload(experiment)
    if found.room is not None and found.room < needed:
        yield Line(
            "DVC remote", "error", f"{file_size(found.room)} left, and a publication sends about {file_size(needed)}",
            "free space there (on Drive the trash counts too) and run again",
        )  # fmt: skip
    for note in notes:
        yield Line("remotes", "warning", note.removesuffix("."), "nothing, if you know of it")


def _check_committed(root: Path) -> Iterator[Line]:
    try:
        if note := require_committed(root):
            yield Line("DVC remotes", "warning", note, "nothing, if you know of it")
    except RemoteError as error:
        yield _wrong("DVC remotes", error)


def _check_dataset(session: Session) -> Iterator[Line]:
    pointer, name = read_pointer(session.root, session.experiment), session.experiment.dataset
    size = "an unknown size" if pointer.size is None else file_size(pointer.size)
    text, pointers = f"{name}: {size} in {pointer.files} files", {f"{name}.dvc": pointer.text}
    missing = find_missing(session.root, pointers, session.credentials.redact, find_mirrors(INPUTS))
    for what, remedy in missing.values():
        yield Line("dataset", "error", f"{text}; {what}", remedy)
    if not missing:
        yield Line("dataset", "ok", f"{text}, MD5 {pointer.md5}; each is where DVC pulls it from")


def _check_drive(session: Session) -> Iterator[Line]:
    if any(remote.kind == "gdrive" for remote in find_remotes(session.root, session.experiment.dataset)):
        yield Line("Drive account", "ok", str(check_drive(session.credentials)))


def _check_github(session: Session) -> Iterator[Line]:
    origin = find_git_remote(session.root)
    if session.credentials.github_token and origin.startswith("http"):
        yield Line("Git account", "ok", str(check_github(session.credentials, origin)))


def _check_wandb(session: Session) -> Iterator[Line]:
    if not session.experiment.wandb.enabled:
        yield Line("W&B", "ok", "switched off: wandb.enabled is false")
    elif not session.credentials.wandb_api_key:
        yield Line("W&B", "ok", "no WANDB_API_KEY: curves are recorded here, to be uploaded later")
    else:
        yield Line("W&B", "ok", str(check_wandb(session.credentials, session.experiment.wandb.entity)))


def _check_messages(session: Session) -> Iterator[Line]:
    if session.credentials.notify_urls:
        services = check_addresses(session.credentials)
        yield Line("messages", "ok", f"{services}; `python -m lib credentials --test-notify` sends one")


# ── the weights ────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_weights(session: Session) -> Iterator[Line]:
    found = find_weights(session)
    if found is None:
        yield Line("weights", "ok", "training starts from random weights")
    elif isinstance(found, Path):
        start = read_start(session, found)
        text = f"{found} ({file_size(found.stat().st_size)}). {start.note}".removesuffix(". ")
        if start.note and not start.epoch:
            yield Line("weights", "warning", text, "nothing, if you know of it")
        else:
            yield Line("weights", "ok", text)
    else:
        request = urllib.request.Request(found, method="HEAD")  # noqa: S310  an https URL of ultralytics' own
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                yield Line("weights", "ok", f"{found} ({file_size(int(answer.headers.get('Content-Length') or 0))})")
        except (urllib.error.URLError, OSError, ValueError) as error:
            yield Line(
                "weights", "error", f"{found} cannot be reached: {error}",
                "turn internet on in the notebook's settings, or attach the file as a dataset and name it as "
                "model.pretrained",
            )  # fmt: skip
