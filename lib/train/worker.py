"""Wait as a worker of a training, with the slow imports done: `python -m lib.train.worker MODULE PARENT`.

PARENT is the id of the process that starts it (`launch.py`). The plan's path comes by the standard input; then `main`
of MODULE trains. Ultralytics is imported only then, since it reads the settings that `prepare_library` writes
meanwhile. Guarantees: the process ends with PARENT.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from lib.process import die_with

SLOW = ("torch._dynamo", "torchvision", "matplotlib.pyplot", "wandb.apis.public")
"""What ultralytics and W&B's client import until the first batch, which takes seconds."""


def main(module: str, parent: int) -> None:
    """Import, wait for the plan, and train; exit at once if the standard input ends without a plan."""
    die_with(parent)
    for name in SLOW:
        import_module(name)
    if plan := sys.stdin.readline().rstrip("\n"):
        import_module(module).main(Path(plan))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
