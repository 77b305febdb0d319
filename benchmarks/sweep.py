"""The time that a sweep's engine adds to a run, and N small runs on two nodes against the same one after the other.

Both sides are whole commands, from the sandbox to the publication: `python -m lib sweep` against `render.py --run`. The
two nodes are a Ray cluster on this machine, with one core each: they share memory and disk, which limits the gain.

    uv run python benchmarks/sweep.py [--turns 2] [--runs 4]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from measure import compare, report, seconds_of

NODES = """
import sys
sys.path.insert(0, "tests/sweep")
from sweep_driver import make_nodes
machines = make_nodes(2)
print(machines.address, flush=True)
sys.stdin.read()
"""
SMALL = ["-p", "training.epochs", "3", "-p", "training.image_size", "64"]


class Bench:
    """One sandbox for all commands, each of which trains a new experiment."""

    def __init__(self, folder: Path, runs: int) -> None:
        self.folder, self.turn = folder, count()
        text = (ROOT / "experiments/000_det_sandbox.yaml").read_text(encoding="utf-8")
        self.files = [folder / f"{number}.yaml" for number in range(runs)]
        for number, file in enumerate(self.files):
            file.write_text(text.replace("name: exp000_sandbox", f"name: exp{number:03}"), encoding="utf-8")

    def _parameters(self) -> list[object]:
        return [*SMALL, "-p", "description", f"turn {next(self.turn)}", "--sandbox", self.folder / "sandbox"]

    def sweep(self, runs: int, address: str = "") -> float:
        """Train the first `runs` experiments as a sweep, and return the seconds."""
        cluster = ["--address", address] if address else []
        command = [sys.executable, "-m", "lib", "sweep", *self.files[:runs], *self._parameters(), "--gpus-per-run", 0]
        return seconds_of([*command, "--folder", self.folder / "sweep", *cluster], cwd=ROOT)

    def one_by_one(self, runs: int) -> float:
        """Train them one after the other, and return the seconds."""
        begin: list[object] = [sys.executable, "render.py", "detection", "--run", "--output", self.folder / "rendered"]
        parameters = self._parameters()
        return seconds_of(*([*begin, "--experiment", file, *parameters] for file in self.files[:runs]), cwd=ROOT)


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--runs", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(Path(name), args.runs)
        bench.one_by_one(1)  # creates the sandbox and fills the caches
        one = compare("engine", lambda: bench.sweep(1), lambda: bench.one_by_one(1), turns=args.turns)
        added = statistics.median(one.ours) - statistics.median(one.other)
        with subprocess.Popen(
            [sys.executable, "-c", NODES], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as nodes:
            assert nodes.stdin is not None
            assert nodes.stdout is not None
            address = nodes.stdout.readline().strip()
            many = compare(
                f"{args.runs}-runs-on-2-nodes",
                lambda: bench.sweep(args.runs, address),
                lambda: bench.one_by_one(args.runs),
                turns=args.turns,
            )
            nodes.stdin.close()
    cases = [replace(one, notes={"seconds added to a run": round(added, 1)}), many]
    report("sweep", cases, "How much time does a sweep's engine add, and how much do two nodes save?")


if __name__ == "__main__":
    main()
