"""Rolling back a publication, by its owner and by `recover()`, on remotes with 1, 10, 100 and 1,000 finished runs.

Each is a whole process in a new shallow clone, as in a session on Kaggle. The owner runs `sync_outputs()`, and the Git
remote refuses its branch; `recover()` rolls back what a killed process of the same clone left. Our side is a remote
with many branches, the other side one with a single branch (ten for the case with a reach): the ratio shows how the
time grows.

    uv run python benchmarks/rollback.py [--turns 5] [--branches 1 10 100 1000]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / folder) for folder in ("", "tests", "tests/emulators", "tests/sync")]

from many import FOLDER, clone, make_origin, publish_many, put_into
from measure import Case, report, seconds_of

BRANCH = "kaggle-train-detection-exp002-20260101-000000"
PUBLISH = f"""
import os, signal, sys
from datetime import UTC, datetime
from pathlib import Path
import lib.remotes.repository
from lib.errors import SyncError
from lib.sync import Publication, sync_outputs

lib.remotes.repository.PAUSES = ()  # a push that is refused for good is not repeated

files = ("{FOLDER}/best.pt", "{FOLDER}/last.pt")
run = Publication(Path.cwd(), "{BRANCH}", "Trained\\n", "{FOLDER}", files, datetime.now(UTC))
def say(line):
    if sys.argv[1] == "die" and line.startswith("Phase 4"):
        os.kill(os.getpid(), signal.SIGKILL)
try:
    sync_outputs(run, say=say, progress=False)
except SyncError as error:
    assert "everything is rolled back" in error.state, error
else:
    raise SystemExit("it was published")
"""
REFUSE = """#!/bin/sh
while read old new ref; do case "$ref" in refs/heads/kaggle-train-detection-exp002*) exit 1;; esac; done
"""
SIZE = 2_000_000


class Bench:
    """Remotes with many finished runs."""

    def __init__(self, folder: Path, branches: int) -> None:
        self.folder, self.turn = folder, 0
        self.origin = make_origin(folder, str(folder / "storage"))
        publish_many(self.origin, range(branches), put_into(folder / "storage"))
        hook = self.origin / "hooks/pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(REFUSE)
        hook.chmod(0o755)
        self.env = {"PYTHONPATH": str(HERE.parent)}

    def _clone(self) -> Path:
        self.turn += 1
        path = clone(self.origin, self.folder / f"clone-{self.turn}")
        for name in ("best.pt", "last.pt"):
            file = path / FOLDER / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(SIZE))
        return path

    def rollback(self) -> float:
        """Publish a branch that is refused, and return the seconds."""
        return seconds_of([sys.executable, "-c", PUBLISH, "live"], cwd=self._clone(), env=self.env)

    def recover(self) -> float:
        """Recover from a killed publication in its clone, where no answer is waited for, and return the seconds."""
        environment, root = {**os.environ, **self.env}, self._clone()
        died = subprocess.run([sys.executable, "-c", PUBLISH, "die"], cwd=root, env=environment, check=False)
        assert died.returncode < 0
        return seconds_of([sys.executable, "-m", "lib", "recover"], cwd=root, env=self.env)

    def is_clean(self, branches: int) -> bool:
        """Return whether both remotes have only the finished runs."""
        objects = [path for path in (self.folder / "storage/files").rglob("*") if path.is_file()]
        refs = subprocess.run(
            ["git", "for-each-ref"], cwd=self.origin, capture_output=True, text=True, check=True
        ).stdout
        others = 2  # main, and the repository's identity
        return len(objects) == 2 * branches and len(refs.splitlines()) == branches + others


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--branches", type=int, nargs="*", default=[1, 10, 100, 1000])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        benches = {count: Bench(Path(name) / str(count), count) for count in args.branches}
        took: dict[tuple[str, int], list[float]] = {}
        for turn in range(args.turns):
            for count in args.branches if turn % 2 == 0 else args.branches[::-1]:
                took.setdefault(("rollback", count), []).append(benches[count].rollback())
                took.setdefault(("recover", count), []).append(benches[count].recover())
            print(f"  turn {turn + 1} of {args.turns}", {key: round(values[-1], 2) for key, values in took.items()})
        assert all(bench.is_clean(count) for count, bench in benches.items())
    few, many = args.branches[0], args.branches[-1]
    cases = []
    for kind in ("rollback", "recover"):
        cases += [Case(f"{kind}-{n}-to-{few}", took[kind, n], took[kind, few]) for n in args.branches[1:]]
        if 10 in args.branches and many > 10:  # noqa: PLR2004
            cases.append(Case(f"{kind}-{many}-to-10", took[kind, many], took[kind, 10], 3.0))
    report("rollback", cases, "How does the time of a rollback grow with the number of branches on the remote?")


if __name__ == "__main__":
    main()
