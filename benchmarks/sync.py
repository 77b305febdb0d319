"""`sync_outputs()` against the same by hand: `dvc add`, `dvc push`, `git add`, `checkout`, `commit`, `push`.

Two files of 20 MB or 200 MB go to a folder as DVC remote, and to the emulated Google Drive with a latency of 0, 50 and
200 ms. Both sides are whole processes, each in a new clone with new bytes. For Drive there are three more cases: the
number of requests; with a latency also how many of them wait for each other (rounds); and the time from the first to
the last byte of the weights as the Drive sees it, against plain requests that send the same number of bytes.

    uv run python benchmarks/sync.py [--turns 5] [--sizes 20 200] [--latencies 0 50 200]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("", "tests", "tests/emulators", "tests/sync")]

import drive_emulator
from drive_emulator import DriveEmulator
from many import FOLDER, clone, make_origin
from measure import Case, compare, report, seconds_of

NAMES = ("best.pt", "last.pt")
OURS = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from lib.sync import Publication, sync_outputs

root, branch = Path(sys.argv[1]), sys.argv[2]
folder = "artifacts/detection/exp001"
files = tuple(f"{folder}/train/weights/{name}" for name in ("best.pt", "last.pt"))
sync_outputs(Publication(root, branch, "Trained\\n", folder, files, datetime.now(UTC)))
"""
MB = 10**6


class Bench:
    """Both remotes, and clones with new weights."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size, self.turn = folder, size, 0
        self.origin = make_origin(folder, str(folder / "storage"))

    def clone(self, drive: DriveEmulator | None = None) -> Path:
        """Return a new clone with new weights."""
        self.turn += 1
        path = clone(self.origin, self.folder / f"clone-{self.turn}")
        for name in NAMES:
            file = path / FOLDER / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(self.size * MB))
        if drive is not None:
            drive_emulator.configure_clone(path, drive, self.folder / "credentials")
        os.sync()  # writing these files back to disk must not slow down the measured side
        return path

    def ours(self, env: dict[str, str], drive: DriveEmulator | None = None) -> float:
        """Publish with `sync_outputs()` in its own process, and return the seconds."""
        root = self.clone(drive)
        path = os.pathsep.join(filter(None, [str(HERE.parent), env.get("PYTHONPATH")]))
        command = [sys.executable, "-c", OURS, root, f"kaggle-train-detection-exp001-{self.turn}"]
        return self._timed(root, [command], {**env, "PYTHONPATH": path})

    def by_hand(self, env: dict[str, str], drive: DriveEmulator | None = None) -> float:
        """Publish with the commands of the requirements, and return the seconds."""
        root, branch = self.clone(drive), f"kaggle-train-detection-exp001-{self.turn}"
        dvc = [sys.executable, "-m", "dvc"]
        commands = [
            *([*dvc, "add", f"{FOLDER}/{name}"] for name in NAMES),
            [*dvc, "push"],
            ["git", "add", "artifacts"],
            ["git", "checkout", "--quiet", "-b", branch],
            ["git", "commit", "--quiet", "--message=Trained"],
            ["git", "push", "--quiet", "origin", branch],
        ]
        return self._timed(root, commands, env)

    def _timed(self, root: Path, commands: Sequence[Sequence[object]], env: Mapping[str, str]) -> float:
        seconds = seconds_of(*commands, cwd=root, env=env)
        shutil.rmtree(root)
        for file in (self.folder / "storage").glob("files/md5/*/*"):
            file.unlink()
        return seconds


PLAIN = """
import json, os, sys, urllib.request

url, root, token, size, count = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
for _ in range(count):
    data = os.urandom(size)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    headers["X-Upload-Content-Length"] = str(size)
    body = json.dumps({"title": "plain", "parents": [{"id": root}]}).encode()
    address = f"{url}/upload/drive/v2/files?uploadType=resumable"
    with urllib.request.urlopen(urllib.request.Request(address, body, headers)) as answer:
        session = answer.headers["Location"]
    headers = {"Authorization": f"Bearer {token}", "Content-Range": f"bytes 0-{size - 1}/{size}"}
    urllib.request.urlopen(urllib.request.Request(session, data, headers, method="PUT")).read()
"""


class Clocked(list[str]):
    """The Drive's list of requests, with the time of each."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def append(self, line: str) -> None:
        """Append a request and its time."""
        self.times.append(time.perf_counter())
        super().append(line)

    def first_put(self, since: int) -> float:
        """Return the time at which the first byte of the weights was sent."""
        return next(self.times[at] for at in range(since, len(self)) if self[at].startswith("PUT /upload"))


class Arrivals(dict[str, Any]):
    """The Drive's items, with the time at which the newest was complete."""

    newest = 0.0

    def __setitem__(self, key: str, item: object) -> None:
        """Add an item whose last byte has arrived."""
        super().__setitem__(key, item)
        self.newest = time.perf_counter()


def on_drive(folder: Path, size: int, latency: int, turns: int) -> list[Case]:
    """Return the cases of one size at one latency."""
    name = f"drive-{size}MB-{latency}ms"
    with DriveEmulator() as drive:
        drive.latency = latency / 1000
        requested = drive.requests = Clocked()
        arrived = drive._items = Arrivals(drive._items)  # noqa: SLF001  the emulator has no view of this
        bench = Bench(folder / name, size)
        env = {"PYTHONPATH": str(drive_emulator.write_sitecustomize(folder / name / "site", drive))}
        requests: dict[str, list[float]] = {"ours": [], "other": []}
        rounds: dict[str, list[float]] = {"ours": [], "other": []}
        sending: dict[str, list[float]] = {"ours": [], "plain": []}

        def run(side: str) -> float:
            before, rounds_before = len(requested), drive.rounds
            if side == "plain":
                arguments = [
                    drive.url,
                    drive.root_id,
                    drive_emulator.CANARIES["access_token"],
                    str(size * MB),
                    str(len(NAMES)),
                ]
                seconds_of([sys.executable, "-c", PLAIN, *arguments], cwd=folder)
            seconds = {"ours": bench.ours, "other": bench.by_hand}[side](env, drive) if side != "plain" else 0.0
            if side in requests:
                requests[side].append(len(requested) - before)
                rounds[side].append(drive.rounds - rounds_before)
            if side in sending:
                sending[side].append(arrived.newest - requested.first_put(before))
            for file in [file for copies in drive.files().values() for file, _ in copies]:
                drive._remove(file)  # noqa: SLF001  the emulator keeps everything in memory
            drive._sessions.clear()  # noqa: SLF001  and what was uploaded with it
            return seconds

        case = compare(name, lambda: run("ours"), lambda: run("other"), turns=turns, reach=1.0)
        for _ in range(turns):
            run("plain")
    return [
        case,
        Case(f"{name}-requests", requests["ours"], requests["other"], 1.0, "requests"),
        *([Case(f"{name}-rounds", rounds["ours"], rounds["other"], 8 / 15, "rounds")] if latency else ()),
        Case(f"{name}-plain", sending["ours"], sending["plain"], 1.2),
    ]


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 200], help="MB")
    parser.add_argument("--latencies", type=int, nargs="*", default=[0, 50, 200], help="ms")
    args = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in args.sizes:
            bench = Bench(folder / f"directory-{size}", size)
            label = "directory" if size == args.sizes[0] else f"directory-{size}MB"
            ours, by_hand = partial(bench.ours, {}), partial(bench.by_hand, {})
            cases.append(compare(label, ours, by_hand, turns=args.turns, reach=0.5))
        for size in args.sizes:
            for latency in args.latencies:
                cases += on_drive(folder, size, latency, args.turns)
    report("sync", cases, "How long does a publication take, against the same by hand?")


if __name__ == "__main__":
    main()
