"""Detect the machine of a run: Kaggle or another one, its folders and its GPUs.

Guarantees: GPUs and folders are checked, not assumed: both folders are writable, and the driver lists the GPUs. Uses
only the standard library, because it runs before anything is installed. Cannot: find GPUs without `nvidia-smi`.
"""

from __future__ import annotations

import itertools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from lib.errors import CommandError, HostError
from lib.process import run_command

KAGGLE = Path("/kaggle/working")
SESSION = 12 * 3600.0  # seconds after which Kaggle ends a session


@dataclass(frozen=True)
class Gpu:
    """One GPU: its name as reported by the driver, and its memory in MiB."""

    name: str
    memory: int


@dataclass(frozen=True)
class Host:
    """The machine of a run."""

    gpus: tuple[Gpu, ...] = ()
    on_kaggle: bool = False

    def describe(self) -> str:
        """Return a one-line summary of the machine for the log."""
        if not self.gpus:
            hardware = f"no GPU, {os.cpu_count()} CPU cores"
        else:
            names = sorted({gpu.name for gpu in self.gpus})
            hardware = f"{len(self.gpus)} x {', '.join(names)} ({min(gpu.memory for gpu in self.gpus)} MiB each)"
        where = "Kaggle" if self.on_kaggle else "this machine"
        return f"{where}: {hardware}, Python {platform.python_version()}"


def find_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that this process may use, as reported by the driver; empty without a driver.

    Raises `HostError` if `CUDA_VISIBLE_DEVICES` names something else: the run would train on the CPU.
    """
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = run_command(query, timeout=60)
    except CommandError:  # also if there is no such program
        return ()
    found: dict[str, Gpu] = {}
    for line in answer.output.splitlines():
        match line.split(", "):
            case index, uuid, *name, memory if memory.isdigit():
                found[index] = found[uuid] = Gpu(", ".join(name), int(memory))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(gpu for name, gpu in found.items() if name.isdecimal())
    words = [word.strip() for word in visible.split(",")]
    matches = ([gpu for name, gpu in found.items() if _names(word, name)] for word in words)
    # CUDA ignores the GPUs after the first unknown one
    usable = tuple(gpus[0] for gpus in itertools.takewhile(lambda gpus: len(gpus) == 1, matches))
    if found and not usable and words[0].startswith(("GPU-", "MIG-")):
        raise HostError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}, and the driver's GPUs are {', '.join(found)}.",
            state="nothing was started.",
            remedy="name the GPUs by their numbers or UUIDs (`nvidia-smi -L`), or unset it; a part of a GPU (MIG) "
            "cannot be used.",
        )
    return usable


def _names(word: str, name: str) -> bool:
    """Return whether CUDA takes a word for a GPU: its number, or the beginning of its UUID."""
    return word == name or (word.startswith("GPU-") and name.startswith(word))


def find_host(working: Path, scratch: Path) -> Host:
    """Return the machine's description; create a run's two folders. Raises `HostError` if one is not writable."""
    for folder in (working, scratch):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".writable").touch()
            (folder / ".writable").unlink()
        except OSError as error:
            raise HostError(
                f"{folder} cannot be written: {error.strerror}.",
                state="nothing was started.",
                remedy="free some space or name another folder with -p working DIR.",
            ) from None
    return Host(find_gpus(), on_kaggle=working == KAGGLE)
