"""One run on one machine: the `Session` that the steps of a run share.

Guarantees: a session is frozen; only `steps` grows. Two sessions of one experiment publish to different branches,
unless they started in the same second.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from lib.experiment.schema import Experiment
from lib.kaggle.host import Host
from lib.remotes.credentials import Credentials

HOUR = 3600.0


@dataclass(frozen=True)
class Session:
    """A run's folders, experiment, credentials, machine and code."""

    root: Path
    """The clone."""
    working: Path
    """Survives the session: on Kaggle it becomes the run's output. Never put a credential, cache or dataset here."""
    scratch: Path
    """Is lost with the session; holds credentials and DVC's cache."""
    experiment: Experiment
    credentials: Credentials = field(default_factory=Credentials)
    host: Host = field(default_factory=Host)
    commit: str = ""
    """The commit that is checked out in the clone."""
    repository: str = ""
    """The URL of the Git remote, without credentials."""
    accelerator: str = "none"
    """What the notebook was rendered for: a key of `ACCELERATORS`."""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    begun: float = field(default_factory=time.monotonic)
    """`started` in seconds of this machine's monotonic clock."""
    steps: list[tuple[str, float]] = field(default_factory=list)
    """Title and start (seconds since the epoch) of each step so far."""

    @property
    def artifacts(self) -> Path:
        """Return the folder of the run's results in the clone."""
        return self.root / self.experiment.artifacts

    @property
    def name(self) -> str:
        """Return the run's unique name: `{module}-{experiment}-{YYYYMMDD-HHMMSS}`, in UTC."""
        return f"{self.experiment.key}-{self.started.astimezone(UTC):%Y%m%d-%H%M%S}"

    @property
    def branch(self) -> str:
        """Return the branch to which the run is published."""
        return f"kaggle-train-{self.name}"

    @property
    def device(self) -> str:
        """Return the device on which ultralytics trains: `cpu`, `0` or `0,1,…`."""
        gpus = range(len(self.host.gpus))
        return ",".join(map(str, gpus if self.experiment.hardware.multi_gpu else gpus[:1])) or "cpu"

    @property
    def elapsed(self) -> float:
        """Return the seconds since the session began."""
        return time.monotonic() - self.begun

    @property
    def stop_at(self) -> float | None:
        """Return when training must stop, in seconds of the monotonic clock; None without `session.max_hours`."""
        most = self.experiment.session.max_hours
        return self.begun + most * HOUR if most else None
