"""Run the trainer and measure the time of our callbacks: the module `timed_trainer` of a worker, for `training.py`."""

from __future__ import annotations

import json
import time
from functools import partial

from lib.train import trainer
from lib.train.launch import WorkerPlan


class Timed(trainer.GuardedTrainer):
    """The real trainer with a timer around its events; it writes `callbacks.json` into the plan's folder."""

    def __init__(self, plan: WorkerPlan) -> None:
        self.spent = 0.0
        super().__init__(plan)

    def run_callbacks(self, event: str) -> None:
        """Run an event's callbacks; those after training, which wait for W&B, do not count."""
        started = time.perf_counter()
        super().run_callbacks(event)
        if event not in ("on_pretrain_routine_start", "on_train_end", "teardown"):
            self.spent += time.perf_counter() - started
        if event == "on_train_end":
            (self.plan.folder / "callbacks.json").write_text(json.dumps(self.spent), encoding="utf-8")


main = partial(trainer.main, guard=Timed)
