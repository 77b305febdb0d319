"""Kill and suspend publishers and recoverers at random moments, and look at what is left: for changes of the protocol.

    python tests/sync/storm.py --store folder --kills 500 --seed 1

Processes with a clone each train a few experiments for ever: they hold a run, publish checkpoints, and publish the
result or leave the run; another one recovers. From outside they receive SIGKILL, and SIGSTOP and SIGCONT; the git of a
killed process runs on, so that its push arrives late. After some kills all are stopped, `recover()` is called until
nothing is left, and plain git and a listing of the store must show:

- every visible branch has its objects, and every checkpoint branch its files, with the right MD5;
- no run's ref, no checkpoint's file that no branch names, no object that no branch names;
- every publication that was reported as done.

Every second round has short leases and suspends processes for longer. A session that was taken over alive may then
leave an object that no branch names, which the protocol does not promise to find; these are counted.
A failure prints the seed, which repeats the random choices and not the moments, and keeps the folder.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1])]

import conftest  # it completes the path
import drive_emulator
from conftest import RUN, WEIGHTS, Stores, run_git
from publications import named_by
from s3_emulator import S3Emulator

from lib.errors import RunError, RunHeldError
from lib.remotes.credentials import Credentials
from lib.sync import CheckpointPublisher, Publication, Refs, RunLock, open_remotes, recover, sync_outputs

for module in ("dvc.repo", "dvc.utils.serialize", "dvc_data.hashfile.hash", "lib.sync.stores.folder"):
    import_module(module)  # else each process would import them anew: they are copies of one that has read this file

CREDENTIALS = Credentials(drive=drive_emulator.CANARIES, source="the storm")
RUNS = ("exp1", "exp2", "exp3", "exp4")
SHARED = 3
"""The number of contents of the first file, which different experiments share; the second is a new one each time."""
PUBLISHERS = 3
KILLS = 8  # in a round
LEASES = (20.0, 2.5)  # seconds, in even and odd rounds
LONGEST = 6.0  # seconds between two strikes
MARKS = ("kaggle-training-store", "kaggle-training-repository-")
LOGGED = {
    "checkpoints": " checkpoint ",
    "takeovers": " takes over.",
    "recoveries": " Recovered ",
    "fenced": "another session has taken over",
}
"""What is counted in the logs, by words of its lines."""
Listing = Callable[[], dict[str, list[bytes]]]


# ── the processes ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Worker:
    """A process that trains for ever, or recovers for ever."""

    clone: Path
    lease: float
    seed: int

    def note(self, line: str) -> None:
        """Append a line to the clone's log."""
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{time.time():.2f} {line}\n")

    @property
    def log(self) -> Path:
        """Return the file of the log."""
        return self.clone.with_suffix(".log")

    def train(self) -> None:
        """Run one session after another."""
        choose = random.Random(self.seed)
        if self.lease == LEASES[0]:  # else the runs of the dead would be held for so long
            recover(self.clone, CREDENTIALS, patience=0, say=self.note)
        while True:
            run = choose.choice(RUNS)
            try:
                self._session(choose, run)
            except RunHeldError:
                time.sleep(0.2)
            except RunError as error:
                self.note(f"{run} ends: {type(error).__name__} {error.what[:300]!r}")

    def _session(self, choose: random.Random, run: str) -> None:
        lock = RunLock(Refs(self.clone, CREDENTIALS), run, lease=self.lease, say=self.note)
        lock.take()
        self.note(f"{run} begins")
        try:
            with open_remotes(self.clone, CREDENTIALS) as remotes:
                publisher = CheckpointPublisher(remotes, lock, self.note)
                for epoch in range(choose.randint(0, 3)):
                    publication = self._write(f"kaggle-checkpoint-{run}", choose, None)
                    publisher.publish(publication, {"epoch": epoch})
                    self.note(f"{run} checkpoint {epoch}")
                publisher.end()
            if choose.random() < 0.7:
                branch = f"kaggle-train-{run}-{time.time_ns()}"
                published = sync_outputs(self._write(branch, choose, lock), CREDENTIALS, say=self.note, progress=False)
                self.note(f"published {branch} {published.commit}")
        finally:
            lock.release()

    def _write(self, branch: str, choose: random.Random, hold: RunLock | None) -> Publication:
        source = self.clone / RUN if hold else self.clone.with_suffix(".copy")  # a checkpoint is copied before
        for path, number in zip(WEIGHTS, (choose.randrange(SHARED), choose.getrandbits(64)), strict=True):
            file = source / Path(path).relative_to(RUN)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(random.Random(number).randbytes(5000))
        return Publication(self.clone, branch, "Training\n", RUN, WEIGHTS, datetime.now(UTC), hold=hold, source=source)

    def recover(self) -> None:
        """Recover again and again."""
        choose = random.Random(self.seed)
        while True:
            try:
                recover(self.clone, CREDENTIALS, say=self.note)
            except RunError as error:
                self.note(f"recovery ends: {type(error).__name__} {error.what[:300]!r}")
            time.sleep(choose.uniform(0, 5))


# ── the storm ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class Storm:
    """The processes of one storm, and what has happened to them."""

    def __init__(self, stores: Stores, listing: Listing, connect: Callable[[Path], object], seed: int) -> None:
        self.stores, self._listing = stores, listing
        self._choose = random.Random(seed)
        self.count: Counter[str] = Counter()
        self._clones = [stores.clone_again(f"clone{number}") for number in range(PUBLISHERS + 1)]
        for clone in (stores.clone, *self._clones):
            connect(clone)
        self._processes: dict[Path, ForkServerProcess] = {}
        self._stopped: dict[Path, float] = {}
        """{clone of a suspended process: when it continues}."""
        self._lease = LEASES[0]
        self._published: dict[str, str] = {}
        self._late: set[str] = set()
        self._named = cache(partial(named_by, stores.origin))

    def run(self, kills: int) -> None:
        """Run rounds until that many processes were killed."""
        while self.count["kills"] < kills:
            self._lease = LEASES[self.count["rounds"] % 2]
            until = min(self.count["kills"] + KILLS, kills)
            while self.count["kills"] < until:
                self._strike()
            self._calm()
            self.look()
            self.count["rounds"] += 1

    def line(self) -> str:
        """Return what has happened, in one line."""
        logs = "".join(log.read_text() for log in self.stores.folder.glob("*.log"))
        counts = {**self.count, "publications": len(self._published), "late objects": len(self._late)}
        counts |= {what: logs.count(words) for what, words in LOGGED.items()}
        return ", ".join(f"{number} {what}" for what, number in counts.items())

    def _start(self, clone: Path) -> None:
        worker = Worker(clone, self._lease, self._choose.getrandbits(32))
        target = worker.recover if clone == self._clones[0] else worker.train
        self._processes[clone] = get_context("forkserver").Process(target=target, daemon=True)
        self._processes[clone].start()

    def _strike(self) -> None:
        """Start what is not running, wait a little, and kill or suspend one process."""
        for clone in self._clones:
            if clone not in self._processes:
                self._start(clone)
        clone = self._choose.choice(self._clones)
        self._wait(clone, self._choose.randint(0, 12))
        for each in [each for each, until in self._stopped.items() if time.monotonic() > until]:
            self._send(each, signal.SIGCONT)
            del self._stopped[each]
        if self._choose.random() < 0.4 and clone not in self._stopped:
            self._send(clone, signal.SIGSTOP)
            self.count["suspensions"] += 1
            self._stopped[clone] = time.monotonic() + self._choose.uniform(
                0.1, 0.25 * LEASES[0] if self._lease == LEASES[0] else 3 * self._lease
            )
        else:
            self._send(clone, signal.SIGKILL)
            self._kill(clone)
            self.count["kills"] += 1

    def _wait(self, clone: Path, lines: int) -> None:
        """Wait until a process has logged so many lines more, at most some seconds, and a random moment longer."""
        log, deadline = clone.with_suffix(".log"), time.monotonic() + self._choose.uniform(1, LONGEST)
        log.touch()
        lines += len(log.read_bytes().splitlines())
        while len(log.read_bytes().splitlines()) < lines and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(self._choose.uniform(0, 0.4))

    def _send(self, clone: Path, number: int) -> None:
        process = self._processes[clone]
        assert process.pid is not None
        assert process.is_alive(), f"{clone} has ended by itself: {process.exitcode}"
        os.kill(process.pid, number)

    def _kill(self, clone: Path) -> None:
        process = self._processes.pop(clone)
        process.kill()
        process.join()
        self._stopped.pop(clone, None)

    def close(self) -> None:
        """Kill all processes, and wait until the last git of theirs has ended."""
        for clone in list(self._processes):
            self._kill(clone)
        deadline = time.monotonic() + 60
        while any(f"{self.stores.folder}/" in words for words in _commands("git")):
            assert time.monotonic() < deadline, "a git hangs"
            time.sleep(0.05)

    def _calm(self) -> None:
        """Stop all, and recover: dead sessions are recovered at once from their own clones."""
        self.close()
        for clone in self._clones:
            recover(clone, CREDENTIALS, patience=0, say=str)
        left = recover(self.stores.clone, CREDENTIALS, say=str)
        assert left == 0, f"{left} runs cannot be recovered"

    # ── what is left ───────────────────────────────────────────────────────────────────────────────────────────────

    def look(self) -> None:
        """Check both remotes by plain git and a listing."""
        refs, stored = self.stores.refs(), self._listing()
        digests = {path: {hashlib.md5(data).hexdigest() for data in copies} for path, copies in stored.items()}
        named: set[str] = set()
        for ref, commit in refs.items():
            assert ref.startswith(("refs/heads/kaggle-", "refs/asks/")), f"{ref} is left"
            for path, (md5, _) in self._named(commit).items() if ref.startswith("refs/heads/") else ():
                named.add(path)
                assert md5 in digests.get(path, ()), f"{ref} needs {path}, which is {digests.get(path, 'not there')}"
        unnamed = {path for path in stored.keys() - named - self._late if not path.startswith(MARKS)}
        if self._lease == LEASES[1]:
            self._late |= {path for path in unnamed if path.startswith("files/")}
        assert unnamed <= self._late, f"no branch names {unnamed - self._late}"
        self._published |= dict(self._reported())
        for branch, commit in self._published.items():
            assert refs.get(f"refs/heads/{branch}") == commit, f"{branch} was reported as published at {commit}"

    def _reported(self) -> Iterator[tuple[str, str]]:
        for clone in self._clones:
            log = clone.with_suffix(".log")
            for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
                _, word, *words = line.split(" ")
                if word == "published":
                    yield words[0], words[1]


def _commands(program: str) -> Iterator[str]:
    """Yield the command line of each running process of a program, with its working folder."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            words = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdecimal() else [b""]
            if Path(words[0].decode()).name.startswith(program):
                yield f"{b' '.join(words).decode()} {(folder / 'cwd').readlink()}/"


# ── the stores ────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def store_of(kind: str, stores: Stores) -> Iterator[tuple[Listing, Callable[[Path], object]]]:
    """Yield how to list a DVC remote of a kind, and how to configure it in a clone."""
    if kind == "drive":
        with drive_emulator.DriveEmulator() as drive, drive_emulator.drive_client(drive):
            site = drive_emulator.write_sitecustomize(stores.folder / "site", drive)
            os.environ["PYTHONPATH"] = f"{site}{os.pathsep}{conftest.SEARCHED}"
            yield (
                lambda: {path: [data for _, data in copies] for path, copies in drive.files().items()},
                lambda clone: drive_emulator.configure_clone(clone, drive, stores.folder / "credentials"),
            )
    elif kind == "s3":
        with S3Emulator() as s3:
            s3.make_bucket("bucket")
            yield (
                lambda: {key.removeprefix("dvc/"): [data] for key, data in s3.files("bucket").items()},
                lambda clone: s3.configure_clone(clone, "bucket"),
            )
    else:
        yield lambda: {path: [data] for path, data in stores.objects().items()}, str


def main() -> int:
    """Run a storm; return 1 if it has found something."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("folder", "drive", "s3"), default="folder")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # else its processes would go on for ever
        signal.signal(number, lambda *_: sys.exit("stopped"))
    folder, began, found = Path(tempfile.mkdtemp(prefix="storm-")), time.monotonic(), 1
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        os.environ[name] = os.devnull
    for role in ("AUTHOR", "COMMITTER"):
        os.environ |= {f"GIT_{role}_NAME": "A User", f"GIT_{role}_EMAIL": "user@example.com"}
    os.environ["PYTHONPATH"] = conftest.SEARCHED
    stores = conftest.make_stores(folder)
    with store_of(given.store, stores) as (listing, connect):
        connect(stores.clone)
        run_git("commit", "--quiet", "--all", "--allow-empty", "--message=the remote", cwd=stores.clone)
        run_git("push", "--quiet", "origin", "HEAD:main", cwd=stores.clone)
        storm = Storm(stores, listing, connect, given.seed)
        try:
            storm.run(given.kills)
            found = 0
        except AssertionError as error:
            print(f"FOUND with --store {given.store} --seed {given.seed}: {error}\nkept: {folder}")
        finally:
            storm.close()
            print(f"{given.store}, seed {given.seed}: {storm.line()}, {time.monotonic() - began:.0f} s", flush=True)
    if not found:
        shutil.rmtree(folder)
    return found


if __name__ == "__main__":
    sys.exit(main())
