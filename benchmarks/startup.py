"""From the start to the first training batch, step by step: the notebook against the same by hand.

Our side is the rendered notebook in a sandbox, executed by papermill; `run.json` has the seconds of its steps. By hand
means the commands of the requirements in order, each in its own process. On both sides the packages are installed
already (`install.py` measures step 2), and Git, the DVC remote and W&B are on this machine. Only our side has a
preflight, in step 5, and looks for an earlier session's checkpoint, in step 4.

    uv run python benchmarks/startup.py [--turns 3]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from measure import Case, report, seconds_of

STEPS = (
    "1 clone", "2 install", "3 DVC", "4 Git", "5 W&B", "6 dataset", "7 configuration", "8 weights", "9 first batch",
)  # fmt: skip
TRAIN = """
import sys, time
from ultralytics import YOLO
model = YOLO("yolo11n.yaml")
model.add_callback("on_train_batch_end", lambda trainer: sys.exit(0))
how = dict(epochs=1, imgsz=160, batch=16, device="cpu", workers=0, pretrained=False)
model.train(data=sys.argv[1], project=sys.argv[2], **how)
"""


def ours(folder: Path) -> dict[str, float]:
    """Run the notebook, and return the seconds of each step up to the first batch."""
    output, sandbox = folder / "rendered", folder / "sandbox"
    render = [sys.executable, "render.py", "detection", "--run", "--output", output, "--sandbox", sandbox]
    batch = 0.0
    environment = {**os.environ, "WANDB_MODE": "offline"}
    log = (folder / "log").open("w+")
    command = [*map(str, render), "-p", "epochs", "1"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    while process.poll() is None:
        time.sleep(0.02)
        for beat in () if batch else sandbox.glob("runs/*/scratch/training/beat"):
            changed, plan = beat.stat().st_mtime, beat.with_name("plan.json")
            if plan.is_file() and changed > plan.stat().st_mtime + 0.001:  # each finished batch touches it
                batch = changed
    if process.returncode or not batch:
        log.seek(0)
        raise SystemExit(log.read()[-4000:])
    (run,) = [json.loads(file.read_text()) for file in sandbox.glob("runs/*/*/artifacts/detection/*/run.json")]
    took = {title.partition("/")[0]: seconds for title, seconds in run["seconds"].items() if "/" in title}
    found = {name: took[name.partition(" ")[0]] for name in STEPS if name.partition(" ")[0] in took}
    started = datetime.fromisoformat(run["started"]).timestamp()
    found["9 first batch"] = batch - started - sum(took[str(number)] for number in range(9))
    found["all"] = batch - started
    return found


def by_hand(folder: Path) -> dict[str, float]:
    """Run the commands of the requirements, and return the seconds of each step."""
    seed = [sys.executable, "-m", "lib", "sandbox", "detection", "--folder", folder / "sandbox", "--json"]
    made = subprocess.run([str(word) for word in seed], cwd=ROOT, capture_output=True, text=True, check=True)
    repository, clone = json.loads(made.stdout.splitlines()[-1])["repository"], folder / "clone"
    dvc = [sys.executable, "-m", "dvc"]
    wandb = "import wandb; wandb.init(project='by-hand', mode='offline', dir='..').finish()"

    def within(*commands: Sequence[object], cwd: Path = clone) -> Callable[[], float]:
        return lambda: seconds_of(*commands, cwd=cwd)

    steps: dict[str, Callable[[], float]] = {
        "1 clone": within(["git", "clone", "--quiet", repository, clone], cwd=folder),
        "2 install": within(["uv", "export", "--quiet", "--frozen", "--output-file", "../requirements.txt"],
                            ["uv", "pip", "install", "--dry-run", "--quiet", "-r", "../requirements.txt",
                             "--python", sys.executable]),
        "3 DVC": within([*dvc, "remote", "modify", "--local", "sandbox", "jobs", "8"],
                        [*dvc, "config", "--local", "cache.dir", folder / "cache"]),
        "4 Git": within(["git", "config", "user.name", "Kaggle"], ["git", "config", "user.email", "kaggle@example.com"],
                        ["git", "ls-remote", "origin", "HEAD"]),
        "5 W&B": within([sys.executable, "-c", wandb]),
        "6 dataset": within([*dvc, "pull", "--quiet"]),
        "7 configuration": within(["cat", "experiments/000_det_sandbox.yaml"]),
        "8 weights": lambda: 0.0,
    }  # fmt: skip
    found: dict[str, float] = {name: run() for name, run in steps.items()}
    (data,) = clone.glob("data/*/data.yaml")
    absolute = folder / "data.yaml"
    absolute.write_text(data.read_text().replace("path: .", f"path: {data.parent}"))
    found["9 first batch"] = seconds_of([sys.executable, "-c", TRAIN, absolute, folder / "runs"], cwd=folder)
    found["all"] = sum(found.values())
    return found


def main() -> None:
    """Run the measurements and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    both: dict[str, list[dict[str, float]]] = {"ours": [], "other": []}
    for turn in range(args.turns):
        sides = [("ours", ours), ("other", by_hand)]
        for side, run in sides if turn % 2 == 0 else sides[::-1]:
            with tempfile.TemporaryDirectory() as name:
                both[side].append(run(Path(name)))
        print(f"  turn {turn + 1} of {args.turns}: {both['ours'][-1]}\n    by hand: {both['other'][-1]}")

    def taken(side: str, name: str) -> list[float]:
        return [max(turn[name], 0.001) for turn in both[side]]  # a time of 0 has no ratio

    cases = [Case(name, taken("ours", name), taken("other", name), 1.0) for name in STEPS]
    cases.append(Case("all", taken("ours", "all"), taken("other", "all"), 0.8))
    report("startup", cases, "How long is it from the start to the first training batch, step by step?")


if __name__ == "__main__":
    main()
