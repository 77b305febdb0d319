"""Everything a run will need, tried before anything costs time: one table, each line ok, a warning or an error.

Guarantees: writing is shown by writing (`lib.sync.rehearse`), a GPU by computing on it; every check is made even when
another fails, side by side, and none can hang. Nothing of it stays. Cannot: promise that a token, a quota or a GPU is
still there hours later, or know how long an epoch takes before one was trained.
"""

from __future__ import annotations

import json
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lib.data.dataset import Pointer, read_pointer
from lib.errors import CommandError, PreflightError, RunError
from lib.experiment.schema import Experiment
from lib.kaggle.host import SESSION, Host, find_host
from lib.process import run_command
from lib.remotes.accounts import check_drive, check_github, check_wandb
from lib.remotes.clone import find_dvc_remote, find_git_remote, set_up_copy
from lib.remotes.credentials import Credentials

State = Literal["ok", "warning", "error"]
ACCELERATORS: Mapping[str, tuple[str, ...]] = {"t4x2": ("T4", "T4"), "p100": ("P100",), "none": ()}
"""What a run may be rendered for: a word of each GPU's name."""
WEIGHTS_SIZE = {"n": 6, "s": 20, "m": 42, "l": 54, "x": 118}
"""MiB of a finished `.pt`, by the architecture's size; one that holds its optimizer is four times that."""
HOUR = 3600.0
SMALL = 2**31  # bytes of free space below which a warning is due
MOST_TOLD = 600  # characters of a finding in the error; the table has all of it
TIMEOUT = 180.0  # seconds for torch's import and first kernel

# Computes on every GPU: a build of torch without kernels for one only fails when it is used.
_TRY_GPUS = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "builds": torch.cuda.get_arch_list(), "gpus": []}
for number in range(torch.cuda.device_count()):
    about = torch.cuda.get_device_properties(number)
    told = {"name": about.name, "memory": about.total_memory, "capability": f"sm_{about.major}{about.minor}"}
    try:
        ones = torch.ones(64, 64, device=f"cuda:{number}")
        told["works"] = bool(((ones @ ones) == 64).all().item())
    except Exception as error:
        told["error"] = str(error).splitlines()[0]
    found["gpus"].append(told)
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Line:
    """What one check found; `remedy` says what to do unless it is ok."""

    name: str
    state: State
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Flight:
    """What is checked: the clone and what is going to be trained in it, where, for which accelerator."""

    root: Path
    experiment: Experiment
    host: Host
    credentials: Credentials
    accelerator: str = "none"
    elapsed: float = 0.0
    """Seconds since the session began."""


def preflight(flight: Flight) -> list[Line]:
    """Check everything, side by side; what a check raises becomes its line."""
    checks = (
        ("GPU", _check_gpus),
        ("batch", _check_batch),
        ("remotes", _check_remotes),
        ("accounts", _check_accounts),
        ("W&B", _check_wandb),
        ("weights", _check_weights),
        ("disk", _check_disk),
        ("session", _check_session),
    )

    def run(name: str, check: Callable[[Flight], Iterator[Line]]) -> list[Line]:
        lines: list[Line] = []
        try:
            lines.extend(check(flight))
        except RunError as error:
            lines.append(_wrong(name, error))
        except Exception as error:  # noqa: BLE001  a check that breaks is a finding, not the end of the others
            told = flight.credentials.redact(f"{type(error).__name__}: {error}")
            lines.append(Line(name, "error", f"it could not be checked: {told}", "see run.log and run again"))
        return lines

    with ThreadPoolExecutor(len(checks), thread_name_prefix="preflight") as pool:
        return [line for lines in pool.map(lambda item: run(*item), checks) for line in lines]


def preflight_here(root: Path, experiment: Experiment, credentials: Credentials, accelerator: str) -> list[Line]:
    """Check what a session would, from the clone at `root`, which stays as it is.

    A copy of it is set up as a session sets itself up: the remotes of the commit, the credentials of `secrets.json`.
    """
    from lib.train.launch import prepare_library

    with set_up_copy(root, credentials) as (copy, scratch):
        host = replace(find_host(root, scratch), on_kaggle=False)
        prepare_library(scratch)
        return preflight(Flight(copy, experiment, host, credentials, accelerator))


def show_preflight(lines: list[Line]) -> str:
    """Give the table."""
    signs = {"ok": "ok     ", "warning": "WARNING", "error": "ERROR  "}
    width = max(len(line.name) for line in lines)
    shown = []
    for line in lines:
        first, *rest = line.found.strip().splitlines()
        shown.append(f"  {signs[line.state]}  {line.name:{width}}  {first}")
        shown += [f"{'':{width + 13}}{text.strip()}" for text in rest]
        if line.remedy:
            shown.append(f"{'':{width + 13}}→ {line.remedy}")
    return "\n".join(shown)


def stop_on_errors(lines: list[Line]) -> None:
    """Raise one `PreflightError` with every error of the table."""
    wrong = [line for line in lines if line.state == "error"]
    if wrong:
        raise PreflightError(
            "; ".join(f"{line.name}: {' '.join(line.found.split())[:MOST_TOLD].rstrip('.')}" for line in wrong) + ".",
            state="nothing was pulled, trained or published.",
            remedy=" ".join(f"{line.name}: {line.remedy.rstrip('.')}." for line in wrong),
        )


def _wrong(name: str, error: RunError, state: State = "error") -> Line:
    return Line(name, state, error.what, error.remedy or "mend the cause and run again")


# ── the machine ────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_gpus(flight: Flight) -> Iterator[Line]:
    wanted = ACCELERATORS[flight.accelerator]
    choose = "choose GPU T4 x2 in the notebook's settings (Session options → Accelerator) and run again"
    if not flight.host.gpus:
        if wanted and flight.host.on_kaggle:
            yield Line("GPU", "error", f"rendered for {flight.accelerator}, and there is none", choose)
        else:
            yield Line("GPU", "ok", f"none: training runs on {flight.host.describe()}")
        return
    try:
        answer = run_command([sys.executable, "-c", _TRY_GPUS], timeout=TIMEOUT)
        found = json.loads(answer.output.splitlines()[-1])
    except (CommandError, ValueError, IndexError) as error:
        yield Line("GPU", "error", f"torch cannot be used: {error}", "restart the session and run again")
        return
    yield from judge_gpus(found, len(flight.host.gpus), wanted, multi_gpu=flight.experiment.hardware.multi_gpu)


def judge_gpus(found: Mapping[str, Any], driven: int, wanted: tuple[str, ...], *, multi_gpu: bool) -> Iterator[Line]:
    """Judge what torch said of the GPUs.

    `found` has `torch`, `cuda`, `builds` (architectures that torch was built for) and `gpus`, each with `name`,
    `memory` (bytes), `capability` and either `works` or `error`. `driven` is how many the driver sees.
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
            told = gpu.get("error", "a product came out wrong")
            builds = ", ".join(found["builds"]) or "no GPU"
            yield Line(
                f"GPU {number}", "error", f"{about}: {build} has no kernels for it (built for {builds}): {told}",
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


def _check_batch(flight: Flight) -> Iterator[Line]:
    count, batch = len(flight.host.gpus), flight.experiment.training.batch_size
    if count < 2 or not flight.experiment.hardware.multi_gpu:  # noqa: PLR2004
        return
    if batch < count:
        told = f"training.batch_size is {batch}, and {count} GPUs train side by side"
        yield Line("batch", "error", told, "give each GPU a picture at least, or set hardware.multi_gpu: false")
    elif batch % count:
        told = f"training.batch_size is {batch}: each of {count} GPUs takes {batch // count}"
        yield Line("batch", "warning", told, f"make it a multiple of {count}")


def _check_disk(flight: Flight) -> Iterator[Line]:
    needs = {
        flight.host.working: ("working folder", 2 * planned_upload(flight.experiment)),
        # DVC keeps a copy of each file in its cache
        flight.host.scratch: ("scratch folder", 2 * (read_pointer(flight.root, flight.experiment).size or 0)),
    }
    for folder, (name, needed) in needs.items():
        free = shutil.disk_usage(folder).free
        told = f"{folder}: {_size(free)} free, about {_size(needed)} needed"
        if free < needed:
            yield Line(name, "error", told, "remove what is not needed there, or name another folder")
        elif free < needed + SMALL:
            yield Line(name, "warning", told, "it may become tight: remove what is not needed there")
        else:
            yield Line(name, "ok", told)


def _check_session(flight: Flight) -> Iterator[Line]:
    most = flight.experiment.session.max_hours
    ends = [hours * HOUR for hours in (most,) if hours] + [SESSION] * flight.host.on_kaggle
    if not ends:
        yield Line("session", "ok", "session.max_hours is null, and this machine ends no session")
        return
    left = min(ends) - flight.elapsed
    epochs = flight.experiment.training.epochs
    told = f"{left / HOUR:.1f} h left to train: {epochs} epochs fit if one takes less than {left / epochs / 60:.1f} min"
    if left < HOUR and flight.host.on_kaggle:
        yield Line("session", "warning", told, "start a new session: this one ends soon")
    elif min(ends) == SESSION:
        yield Line(
            "session", "warning", f"{told}; session.max_hours is {most or 'null'}, and Kaggle ends it after 12 h",
            "set session.max_hours to 11, so that evaluation and publication have their time",
        )  # fmt: skip
    else:
        yield Line("session", "ok", told)


# ── the remotes and accounts ───────────────────────────────────────────────────────────────────────────────────────


def planned_upload(experiment: Experiment) -> int:
    """Estimate the bytes of weights that a publication sends: the best ones, and a checkpoint with its optimizer."""
    size = experiment.model.architecture.removeprefix("yolo11")[0]
    return 5 * WEIGHTS_SIZE[size] * 2**20


def _check_remotes(flight: Flight) -> Iterator[Line]:
    from lib.sync import rehearse

    notes: list[str] = []
    pointer = read_pointer(flight.root, flight.experiment)
    found = rehearse(flight.root, flight.credentials, wanted=[pointer.md5], say=notes.append)
    for name, told in (("Git remote", found.git), ("DVC remote", found.dvc)):
        yield _wrong(name, told) if isinstance(told, RunError) else Line(name, "ok", told)
    needed = planned_upload(flight.experiment)
    if found.room is not None and found.room < needed:
        yield Line(
            "DVC remote", "error", f"{_size(found.room)} left, and a publication sends about {_size(needed)}",
            "free space there (on Drive the trash counts too) and run again",
        )  # fmt: skip
    if not isinstance(found.dvc, RunError):
        yield _judge_dataset(pointer, flight.experiment.dataset, is_there=not found.missing)
    for note in notes:
        yield Line("remotes", "warning", note.removesuffix("."), "nothing, if you know of it")


def _check_accounts(flight: Flight) -> Iterator[Line]:
    """Say whose accounts they are; that they may write is shown by the rehearsal."""
    _, url = find_dvc_remote(flight.root)
    if url.startswith("gdrive://"):
        yield Line("Drive account", "ok", str(check_drive(flight.credentials)))
    origin = find_git_remote(flight.root, flight.credentials)
    if flight.credentials.github_token and origin.startswith("http"):
        try:
            yield Line("Git account", "ok", str(check_github(flight.credentials, origin)))
        except RunError as error:  # what the API says is a hint; the rehearsal is the proof
            yield _wrong("Git account", error, "warning")


def _check_wandb(flight: Flight) -> Iterator[Line]:
    if not flight.experiment.wandb.enabled:
        yield Line("W&B", "ok", "switched off: wandb.enabled is false")
    elif not flight.credentials.wandb_api_key:
        yield Line("W&B", "ok", "no WANDB_API_KEY: curves are recorded here, to be uploaded later")
    else:
        try:
            yield Line("W&B", "ok", str(check_wandb(flight.credentials)))
        except RunError as error:  # curves never stop a training
            yield _wrong("W&B", error, "warning")


# ── what is trained on, and from ───────────────────────────────────────────────────────────────────────────────────


def _judge_dataset(pointer: Pointer, name: str, *, is_there: bool) -> Line:
    about = f"{name}: {_size(pointer.size)} in {pointer.files} files"
    if is_there:
        return Line("dataset", "ok", f"{about}; its listing {pointer.md5} is on the DVC remote")
    return Line(
        "dataset", "error", f"{about}: its listing {pointer.md5} is not on the DVC remote",
        f"run `dvc push {name}.dvc` in a clone that has it, and check the remote's address",
    )  # fmt: skip


def _check_weights(flight: Flight) -> Iterator[Line]:
    from lib.train.launch import find_weights

    found = find_weights(flight.experiment, flight.root)
    if found is None:
        yield Line("weights", "ok", "training starts from random weights")
    elif isinstance(found, Path):
        yield Line("weights", "ok", f"{found} ({_size(found.stat().st_size)})")
    else:
        request = urllib.request.Request(found, method="HEAD")  # noqa: S310  an address of ultralytics' own, https
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                yield Line("weights", "ok", f"{found} ({_size(int(answer.headers.get('Content-Length') or 0))})")
        except (urllib.error.URLError, OSError, ValueError) as error:
            yield Line(
                "weights", "error", f"{found} cannot be reached: {error}",
                "turn internet on in the notebook's settings, or attach the file as a dataset and name it as "
                "model.pretrained",
            )  # fmt: skip


def _size(count: int | None) -> str:
    if count is None:
        return "an unknown size"
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
