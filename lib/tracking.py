"""One W&B run for one training run, whatever the number of GPUs.

Guarantees: only the process that trains first (rank 0) opens the run, always under the id chosen here; without a key
everything is recorded offline, to be uploaded later; whatever W&B does, training goes on.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lib.credentials import Credentials
from lib.experiment import Experiment


@dataclass(frozen=True)
class Tracking:
    """What every process needs to write to the one run; it travels to DDP workers, so it holds no credential."""

    id: str
    name: str
    project: str
    entity: str | None
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    folder: Path
    mode: Literal["online", "offline", "disabled"]
    site: str = ""
    """Where W&B shows its runs: its own address, or that of a server of one's own (WANDB_BASE_URL)."""

    @property
    def address(self) -> str:
        """Where a person finds the run, or how it gets there."""
        if self.mode == "disabled":
            return "not recorded (wandb.enabled is false)"
        if self.mode == "offline":
            return f"offline; upload it with: wandb sync {self.folder}/wandb/offline-run-*-{self.id}"
        return f"{self.site}/{self.entity or 'home'}/{self.project}/runs/{self.id}"


def configure_tracking(experiment: Experiment, credentials: Credentials, folder: Path, name: str) -> Tracking:
    """Choose the run's id and mode. The key goes into this process's environment, where the client looks for it."""
    key = credentials.wandb_api_key
    mode: Literal["online", "offline", "disabled"] = "online" if key else "offline"
    if not experiment.wandb.enabled:
        mode = "disabled"
    # W&B's client reports its own errors and figures to its makers, offline too, and waits for them at the end
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    entity = experiment.wandb.entity
    if key:
        os.environ["WANDB_API_KEY"] = key
    if mode == "online":
        found = _default_entity()
        entity = entity or found
        if found is None:
            print("Warning: W&B does not answer or refuses the key; curves are recorded offline.", flush=True)
            mode = "offline"
    folder.mkdir(parents=True, exist_ok=True)
    site = _site() if mode == "online" else ""
    return Tracking(
        id=secrets.token_hex(4),
        name=name,
        project=experiment.wandb.project,
        entity=entity,
        tags=tuple(experiment.wandb.tags),
        config=experiment.model_dump(mode="json"),
        folder=folder,
        mode=mode,
        site=site,
    )


def _site() -> str:
    import wandb

    settings = wandb.Settings()
    settings.update_from_env_vars(dict(os.environ))
    return str(settings.app_url).rstrip("/")


def _default_entity() -> str | None:
    """Ask W&B whose key it is; None where it does not let us in."""
    with contextlib.suppress(Exception):
        import wandb

        found = wandb.Api(timeout=20).default_entity
        return str(found) if found else None
    return None


def tracking_callbacks(tracking: Tracking) -> dict[str, Callable[[Any], None]]:
    """Give ultralytics' events that write to the run; they are pickled by name into DDP workers."""
    if tracking.mode == "disabled":
        return {}
    return {
        "on_pretrain_routine_start": partial(_open, tracking),
        "on_fit_epoch_end": _log_epoch,
        "on_train_end": _log_plots,
        "teardown": _close,
    }


def finish_tracking(tracking: Tracking, summary: Mapping[str, float | str]) -> None:
    """Add what is known only after training (test metrics, the branch) to the same run."""
    if tracking.mode == "disabled":
        return
    with _training_goes_on("adding the results to the W&B run"):
        import wandb

        with _run(tracking) as run:
            run.summary.update(dict(summary))
        # W&B's service writes behind: only its end makes sure that all is in the files
        wandb.teardown()


@contextlib.contextmanager
def _run(tracking: Tracking) -> Iterator[Any]:
    import wandb

    run = wandb.init(
        id=tracking.id,
        name=tracking.name,
        project=tracking.project,
        entity=tracking.entity,
        tags=list(tracking.tags),
        config=dict(tracking.config),
        dir=str(tracking.folder),
        mode=tracking.mode if tracking.mode != "disabled" else None,
        resume="allow" if tracking.mode == "online" else None,
        # the log of a run is kept by the run; W&B's copy of the output would not be redacted
        settings=wandb.Settings(console="off", silent=True, init_timeout=60, disable_git=True, save_code=False),
    )
    try:
        yield run
    finally:
        run.finish()


# The run that this process has open: an event is given only the trainer.
_open_runs = contextlib.ExitStack()


def _open(tracking: Tracking, trainer: Any) -> None:  # noqa: ANN401  ultralytics has no types
    if int(os.environ.get("RANK", "-1")) > 0:
        return
    with _training_goes_on("opening the W&B run"):
        _close(trainer)
        run = _open_runs.enter_context(_run(tracking))
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")


def _log_epoch(trainer: Any) -> None:  # noqa: ANN401
    import wandb

    # the library sends this event once more after training, with the best epoch's metrics under the last one's number
    if wandb.run is None or getattr(trainer, "tracked_epoch", None) == trainer.epoch:
        return
    trainer.tracked_epoch = trainer.epoch
    with _training_goes_on("writing an epoch to the W&B run"):
        values = {**trainer.label_loss_items(trainer.tloss, prefix="train"), **trainer.metrics, **trainer.lr}
        wandb.run.log({**values, "gpu_memory_gib": _gpu_memory(), "epoch": trainer.epoch + 1})


def _log_plots(trainer: Any) -> None:  # noqa: ANN401
    import wandb

    if wandb.run is None:
        return
    with _training_goes_on("writing the plots to the W&B run"):
        plots = sorted(Path(trainer.save_dir).glob("*.png")) + sorted(Path(trainer.save_dir).glob("*.jpg"))
        wandb.run.log({f"plots/{plot.stem}": wandb.Image(str(plot)) for plot in plots})


def _close(trainer: Any) -> None:  # noqa: ANN401, ARG001
    with _training_goes_on("closing the W&B run"):
        _open_runs.close()


def _gpu_memory() -> float:
    import torch

    return float(torch.cuda.max_memory_reserved() / 2**30) if torch.cuda.is_available() else 0.0


@contextlib.contextmanager
def _training_goes_on(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # noqa: BLE001  whatever a curve costs, the model is worth more
        print(f"Warning: {what} failed ({type(error).__name__}: {error}); training goes on without it.", flush=True)
