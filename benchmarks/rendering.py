"""Rendering a notebook with `render.py` against `papermill --prepare-only` of the same notebook.

Each is a whole process. Papermill does not read `.py`, so its side starts with `jupytext --to notebook`, as users do;
papermill alone is measured as well.

    uv run python benchmarks/rendering.py [--turns 7]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from measure import compare, report, seconds_of

HEAVY = """
import runpy, sys
sys.argv = ["render.py", *sys.argv[1:]]
try: runpy.run_path("render.py", run_name="__main__")
except SystemExit as end: assert not end.code
heavy = {"torch", "ultralytics", "dvc", "wandb", "cv2", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = ["-p", "repository", "https://github.com/octocat/kaggle-training.git", "-p", "commit", "a" * 40]
        ours: list[str | Path] = [
            sys.executable,
            "render.py",
            "detection",
            "--allow-dirty",
            "--output",
            folder / "ours",
            *parameters,
        ]
        seconds_of([sys.executable, "-c", HEAVY, *ours[2:]], cwd=ROOT)  # asserts that no heavy package is imported
        notebook = folder / "train.ipynb"
        convert: list[str | Path] = [
            sys.executable,
            "-m",
            "jupytext",
            "--quiet",
            "--to",
            "notebook",
            "--output",
            notebook,
            "notebooks/train.py",
        ]
        prepare: list[str | Path] = [
            sys.executable,
            "-m",
            "papermill",
            "--prepare-only",
            "--log-level",
            "ERROR",
            notebook,
            folder / "out.ipynb",
        ]
        prepare += ["-p", "module", "detection", *parameters]
        seconds_of(convert, cwd=ROOT)
        cases = [
            compare(
                "render", lambda: seconds_of(ours, cwd=ROOT), lambda: seconds_of(convert, prepare, cwd=ROOT),
                turns=args.turns, reach=1.0,
            ),
            compare(
                "render-to-papermill-alone", lambda: seconds_of(ours, cwd=ROOT), lambda: seconds_of(prepare, cwd=ROOT),
                turns=args.turns, reach=1.0,
            ),
        ]  # fmt: skip
    report("rendering", cases, "How long does rendering take, against papermill?")


if __name__ == "__main__":
    main()
