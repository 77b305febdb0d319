"""Step 2, which installs `uv.lock` over a base environment with torch, against pip, with cold and warm caches.

The other side is `pip install` of the same locked requirements (hashes, nothing to resolve); with `--names`, also of
their names alone, as without a lock. Each installs into a new folder; cold means that both tools have empty caches.

    uv run python benchmarks/install.py [--turns 3] [--torch 2.13.0]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from measure import Case, compare, report, seconds_of

from lib.kaggle.install import export, parse

STEP = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from lib.kaggle.install import install
print(install(Path(sys.argv[1]), Path(sys.argv[2])))
"""


class Bench:
    """A base environment with its own torch, and new folders to install into."""

    def __init__(self, folder: Path, torch: str) -> None:
        self.folder, self.turn = folder, 0
        self.base = folder / "base"
        subprocess.run([sys.executable, "-m", "venv", self.base], check=True)
        self.python = self.base / "bin/python"
        subprocess.run([self.python, "-m", "pip", "install", "--quiet", f"torch=={torch}", "numpy<2.4"], check=True)
        requirements = export(ROOT)
        self.locked = folder / "locked.txt"
        self.locked.write_text(requirements)
        self.names = folder / "names.txt"
        marked = ((name, marker) for name, _, marker, _ in parse(requirements))
        self.names.write_text("\n".join(f"{name}; {marker}" if marker else name for name, marker in marked))

    def _target(self, *, cold: bool) -> tuple[Path, dict[str, str]]:
        self.turn += 1
        caches = self.folder / (f"cold-{self.turn}" if cold else "warm")
        environment = {"UV_CACHE_DIR": str(caches / "uv"), "PIP_CACHE_DIR": str(caches / "pip")}
        return self.folder / f"packages-{self.turn}", environment

    def _timed(self, command: Sequence[object], target: Path, environment: dict[str, str]) -> float:
        path = os.pathsep.join([str(Path(str(shutil.which("uv"))).parent), os.environ["PATH"]])
        seconds = seconds_of(command, cwd=self.folder, env={**environment, "PATH": path, "PYTHONPATH": ""})
        assert (target / "ultralytics").is_dir()
        shutil.rmtree(target)
        return seconds

    def ours(self, *, cold: bool) -> float:
        """Install with step 2, and return the seconds."""
        target, environment = self._target(cold=cold)
        return self._timed([self.python, "-c", STEP, ROOT, target], target, environment)

    def pip(self, requirements: Path, *, cold: bool) -> float:
        """Install with pip, and return the seconds."""
        target, environment = self._target(cold=cold)
        options = ["--no-deps", "--require-hashes"] if requirements == self.locked else []
        command = [self.python, "-m", "pip", "install", "--quiet", "--target", target, *options, "-r", requirements]
        return self._timed(command, target, environment)


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--torch", default="2.13.0")
    parser.add_argument(
        "--names", action="store_true", help="also install without versions; pip then installs its own torch"
    )
    args = parser.parse_args()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place), args.torch)
        sides = [("locked", bench.locked), *([("names", bench.names)] if args.names else [])]
        for label, file in sides:
            bench.ours(cold=False), bench.pip(file, cold=False)  # fills the warm caches
            for cold in (False, True):
                ours, pip = partial(bench.ours, cold=cold), partial(bench.pip, file, cold=cold)
                name = f"{label}-{'cold' if cold else 'warm'}"
                cases.append(compare(name, ours, pip, turns=args.turns, reach=0.2))
    report("install", cases, "How long does step 2 take, against pip?")


if __name__ == "__main__":
    main()
