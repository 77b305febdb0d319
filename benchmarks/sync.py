"""`sync_outputs()` against the same by hand: `dvc add`, `dvc push`, `git add`, `checkout`, `commit`, `push`.

Two files of 20 MB and two of 200 MB, to a folder as DVC remote and to the emulated Google Drive at 0, 50 and 200 ms of
latency. Whole processes on both sides, each in a new clone with other bytes. For Drive also: the requests of both, and
the time from the first byte of the weights to the last one, as the Drive sees it, against plain requests that send as
many.

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
        (folder / "storage").mkdir()

    def clone(self, drive: DriveEmulator | None = None) -> Path:
        """Give a new clone with weights that nobody has seen."""
        self.turn += 1
        path = clone(self.origin, self.folder / f"clone-{self.turn}")
        for name in NAMES:
            file = path / FOLDER / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(self.size * MB))
        if drive is not None:
            drive_emulator.configure_clone(path, drive, self.folder / "credentials")
        os.sync()  # what was just written must not be paid for by the side that is measured
        return path

    def ours(self, env: dict[str, str], drive: DriveEmulator | None = None) -> float:
        """Publish with `sync_outputs()`, in a process of its own."""
        root = self.clone(drive)
        path = os.pathsep.join(filter(None, [str(HERE.parent), env.get("PYTHONPATH")]))
        command = [sys.executable, "-c", OURS, root, f"kaggle-train-detection-exp001-{self.turn}"]
        return self._timed(root, [command], {**env, "PYTHONPATH": path})

    def by_hand(self, env: dict[str, str], drive: DriveEmulator | None = None) -> float:
        """Publish with the commands of the requirements."""
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
    said = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    said["X-Upload-Content-Length"] = str(size)
    body = json.dumps({"title": "plain", "parents": [{"id": root}]}).encode()
    address = f"{url}/upload/drive/v2/files?uploadType=resumable"
    with urllib.request.urlopen(urllib.request.Request(address, body, said)) as answer:
        session = answer.headers["Location"]
    said = {"Authorization": f"Bearer {token}", "Content-Range": f"bytes 0-{size - 1}/{size}"}
    urllib.request.urlopen(urllib.request.Request(session, data, said, method="PUT")).read()
urllib.request.urlopen(urllib.request.Request(f"{url}/drive/v2/about", headers=said)).read()
"""


class Clocked(list[str]):
    """The Drive's list of requests, with the time at which each came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def append(self, line: str) -> None:
        """Note a request."""
        self.times.append(time.perf_counter())
        super().append(line)

    def sending(self, since: int) -> float:
        """Give the seconds from the first byte of the weights to the request that follows their last one."""
        puts = [at for at in range(since, len(self)) if self[at].startswith("PUT /upload")]
        sent = [at for at in puts if "kaggle-training-" not in self[at]]
        return self.times[sent[-1] + 1] - self.times[sent[0]]


def on_drive(folder: Path, size: int, latency: int, turns: int) -> list[Case]:
    """Measure one size at one latency."""
    name = f"drive-{size}MB-{latency}ms"
    with DriveEmulator() as drive:
        drive.latency = latency / 1000
        seen = drive.requests = Clocked()
        bench = Bench(folder / name, size)
        env = {"PYTHONPATH": str(drive_emulator.write_sitecustomize(folder / name / "site", drive))}
        requests: dict[str, list[float]] = {"ours": [], "other": []}
        sending: dict[str, list[float]] = {"ours": [], "plain": []}

        def run(side: str) -> float:
            before = len(seen)
            if side == "plain":
                told = [
                    drive.url,
                    drive.root_id,
                    drive_emulator.CANARIES["access_token"],
                    str(size * MB),
                    str(len(NAMES)),
                ]
                seconds_of([sys.executable, "-c", PLAIN, *told], cwd=folder)
            seconds = {"ours": bench.ours, "other": bench.by_hand}[side](env, drive) if side != "plain" else 0.0
            if side in requests:
                requests[side].append(len(seen) - before)
            if side in sending:
                sending[side].append(seen.sending(before))
            for file in [file for path, copies in drive.files().items() if "-owner-" not in path for file, _ in copies]:
                drive._remove(file)  # noqa: SLF001  the emulator keeps everything in memory
            drive._sessions.clear()  # noqa: SLF001  and what was uploaded with it
            return seconds

        case = compare(name, lambda: run("ours"), lambda: run("other"), turns=turns, reach=1.0)
        for _ in range(turns):
            run("plain")
    return [
        case,
        Case(f"{name}-requests", requests["ours"], requests["other"], 1.0, "requests"),
        Case(f"{name}-plain", sending["ours"], sending["plain"], 1.2),
    ]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="*", default=[20, 200], help="MB")
    parser.add_argument("--latencies", type=int, nargs="*", default=[0, 50, 200], help="ms")
    given = parser.parse_args()
    cases = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for size in given.sizes:
            bench = Bench(folder / f"directory-{size}", size)
            label = "directory" if size == given.sizes[0] else f"directory-{size}MB"
            ours, by_hand = partial(bench.ours, {}), partial(bench.by_hand, {})
            cases.append(compare(label, ours, by_hand, turns=given.turns, reach=0.5))
        for size in given.sizes:
            for latency in given.latencies:
                cases += on_drive(folder, size, latency, given.turns)
    report("sync", cases, "How long does a publication take, against the same by hand?")


if __name__ == "__main__":
    main()
