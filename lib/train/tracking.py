"""Record one W&B run per training run, regardless of the number of GPUs and of how often the training resumes.

Guarantees: only one process writes, always under the id chosen here; without a key, or if W&B does not answer,
everything is recorded offline for a later upload; no behaviour of W&B stops or delays the training.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lib.session import Session

OPENING = 60.0  # seconds for W&B to open a run; after that, it is recorded offline
CLOSING = 180.0  # seconds for W&B to accept all data; the user uploads the rest by hand


@dataclass(frozen=True)
class Tracking:
    """The settings for writing to the W&B run; DDP workers receive them, so they hold no credential."""

    id: str
    name: str
    project: str
    entity: str | None
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    folder: Path
    mode: Literal["online", "offline", "disabled"]
    site: str = ""
    """The URL at which W&B shows runs: the public one, or that of the private server that W&B's client uses."""

    @property
    def run_path(self) -> str:
        """Return `project/id`; a checkpoint stores it so that a resumed training continues the same run."""
        return f"{self.project}/{self.id}"

    def resumed(self, run_path: str) -> Tracking:
        """Return the settings for continuing the run at `run_path`; an invalid `run_path` changes nothing."""
        found = re.fullmatch(r"([A-Za-z0-9_.-]+)/([0-9a-f]{8})", run_path)
        return replace(self, project=found[1], id=found[2]) if found else self

    @property
    def upload(self) -> str:
        """Return the command that uploads the data that is only on this machine."""
        return f"wandb sync {self.folder}/wandb/*run-*-{self.id}"

    @property
    def address(self) -> str:
        """Return the run's URL, the command that uploads it, or why it is not recorded."""
        if self.mode == "disabled":
            return "not recorded (wandb.enabled is false)"
        if self.mode == "offline":
            return f"offline; upload it with: {self.upload}"
        return f"{self.site}/{self.entity or 'home'}/{self.project}/runs/{self.id}"


def configure_tracking(session: Session) -> Tracking:
    """Return the run's settings with a new id; put the API key into this process's environment for W&B's client."""
    experiment, key = session.experiment, session.credentials.wandb_api_key
    mode: Literal["online", "offline", "disabled"] = "online" if key else "offline"
    if not experiment.wandb.enabled:
        mode = "disabled"
    # W&B's client reports its own errors and statistics to its vendor, even offline, and waits for that at exit
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    entity = experiment.wandb.entity
    if key:
        os.environ["WANDB_API_KEY"] = key
    _leave_service()
    if mode == "online":
        found = _default_entity()
        entity, why = entity or found, ""
        if found is None:
            why = "W&B does not answer or refuses the key"
        elif not entity:
            why = "the key's owner has no default entity, and the experiment names none (wandb.entity)"
        if why:
            print(f"Warning: {why}; curves are recorded offline.", flush=True)
            mode = "offline"
    session.working.mkdir(parents=True, exist_ok=True)
    return Tracking(
        id=secrets.token_hex(4),
        name=session.name,
        project=experiment.wandb.project,
        entity=entity,
        tags=tuple(experiment.wandb.tags),
        config=experiment.model_dump(mode="json"),
        folder=session.working,
        mode=mode,
        site=_site() if mode == "online" else "",
    )


def _leave_service() -> None:
    """Detach this process from its parent's W&B service, so that it starts its own.

    Only its owner can end a service. After an attempt to open a run, a service writes no other run with the same id.
    """
    os.environ.pop("WANDB_SERVICE", None)


def _site() -> str:
    import wandb

    settings = wandb.setup().settings.model_copy()  # with those that `wandb login --host` has written
    settings.update_from_env_vars(dict(os.environ))
    return str(settings.app_url).rstrip("/")


def _default_entity() -> str | None:
    """Return the key owner's default entity, empty if there is none; None if W&B does not answer or refuses the key."""
    with contextlib.suppress(Exception):
        import wandb

        return str(wandb.Api(timeout=20).default_entity or "")
    return None


class Recorder:
    """Writes to the W&B run from a separate thread; the caller never waits for W&B, except in `close`."""

    def __init__(self, tracking: Tracking) -> None:
        self._tracking = tracking
        self._jobs: queue.SimpleQueue[tuple[str, Callable[[Any], object]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if tracking.mode != "disabled":
            self._thread.start()

    def write(self, what: str, job: Callable[[Any], object]) -> None:
        """Call `job` with W&B's run, in order; a failure is a warning that `what` failed."""
        self._jobs.put((what, job))

    def log(self, values: Mapping[str, float]) -> None:
        """Add a row of values to the curves; `epoch` is their x-axis."""
        self.write("writing an epoch to the W&B run", lambda run: run.log(dict(values)))

    def log_plots(self, folder: Path) -> None:
        """Add the images in `folder` to the run."""

        def send(run: Any) -> None:  # noqa: ANN401  wandb's run
            import wandb

            plots = sorted(folder.glob("*.png")) + sorted(folder.glob("*.jpg"))
            run.log({f"plots/{plot.stem}": wandb.Image(str(plot)) for plot in plots})

        self.write("writing the plots to the W&B run", send)

    def close(self) -> None:
        """Write the remaining data and end the run, within `CLOSING` seconds."""
        self._jobs.put(None)
        if self._tracking.mode == "disabled":
            return
        self._thread.join(CLOSING)
        if self._thread.is_alive():
            _warn(f"W&B has not taken everything yet; later, upload the rest with: {self._tracking.upload}")

    def _work(self) -> None:
        try:
            run = self._open()
        except Exception as error:  # noqa: BLE001  a failure of W&B must not cost the model
            _warn(f"opening the W&B run failed ({_describe(error)}); training continues without it.")
            return
        for what, write in iter(self._jobs.get, None):
            try:
                write(run)
            except Exception as error:  # noqa: BLE001
                _warn(f"{what} failed ({_describe(error)}); training continues without it.")
        with contextlib.suppress(Exception):
            import wandb

            run.finish()
            wandb.teardown()  # W&B's service writes asynchronously: only its end ensures that all data is in the files

    def _open(self) -> Any:  # noqa: ANN401  wandb's run
        import wandb

        _leave_service()
        tracking = self._tracking
        given: dict[str, Any] = {
            "id": tracking.id,
            "name": tracking.name,
            "project": tracking.project,
            "entity": tracking.entity,
            "tags": list(tracking.tags),
            "config": dict(tracking.config),
            "dir": str(tracking.folder),
            # the run keeps its own log; W&B's copy of the output would not be redacted
            "settings": wandb.Settings(
                console="off", silent=True, init_timeout=OPENING, finish_timeout=CLOSING, disable_git=True,
                save_code=False,
            ),
        }  # fmt: skip
        run = None
        if tracking.mode == "online":
            try:
                run = wandb.init(**given, mode="online", resume="allow")
            except Exception as error:  # noqa: BLE001
                _warn(f"W&B does not answer ({_describe(error)}); recorded offline, upload it with: {tracking.upload}")
                wandb.teardown()  # its service would not write a second run with the same id
        run = run or wandb.init(**given, mode="offline")
        run.define_metric("epoch")
        run.define_metric("*", step_metric="epoch")
        return run


def finish_tracking(tracking: Tracking, state: str, summary: Mapping[str, float | str], text: str = "") -> None:
    """Add values known only after training (test metrics, the branch) to the W&B run, and send an alert.

    `state` is `finished`, `stopped`, `interrupted`, `failed` or `discarded`.
    """
    recorder, title = Recorder(tracking), f"{tracking.name} {'is ' * (state == 'finished')}{state}"
    recorder.write("adding the results to the W&B run", lambda run: run.summary.update({**summary, "state": state}))
    recorder.write("sending a W&B alert", lambda run: run.alert(title, text or tracking.address))
    recorder.close()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _warn(text: str) -> None:
    print(f"Warning: {text}", flush=True)
