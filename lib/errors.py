"""Every error that this project raises: what happened, the state now, and the next command.

Guarantees: `RunError` is the only root; catching it catches every error of this project and nothing else. A message
contains no credential, because text from outside (a client's reply, a command's output) passes through
`Credentials.redact` before it becomes a message. Cannot: enforce this; the code that raises an error must redact.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator

from lib.escape import CODES, visible


class RunError(Exception):
    """An error that stopped the run.

    `what` is one sentence on what happened. `state` describes the state now: what was kept, what was rolled back; a
    kind of error has a default for it. `remedy` names what to do or run next. All three are shown, in this order.
    """

    state = ""

    def __init__(self, what: str, *, state: str = "", remedy: str = "") -> None:
        self.what, self.state, self.remedy = CODES.sub("", what), state or self.state, remedy
        super().__init__(self.what)

    def __str__(self) -> str:
        parts = [self.what, self.state and f"State: {self.state}", self.remedy and f"What to do: {self.remedy}"]
        return "\n".join(map(visible, "\n".join(filter(None, parts)).splitlines()))


def did_you_mean(word: str, known: Iterable[str], otherwise: str, show: Callable[[str], str] = str) -> str:
    """Return the remedy for an unknown word: the most similar known one, or `otherwise` if none is similar."""
    similar = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {show(similar[0])}?" if similar else otherwise


class ExperimentError(RunError):
    """The experiment file is missing, is not valid YAML, or contains an unknown key or an invalid value."""

    state = "nothing was started."


class CredentialsError(RunError):
    """An entry of `secrets.json` is missing or malformed, or a service rejects it. Values are never shown."""


class CommandError(RunError):
    """A subprocess could not be started, failed, or exceeded its time limit."""


class HostError(RunError):
    """This machine lacks a requirement of the rendered notebook: a GPU, a folder, a program."""


class InstallError(RunError):
    """The locked packages could not be installed on top of the host's torch."""


class PreflightError(RunError):
    """A requirement of the run is not met; it was checked before the dataset was pulled."""


class RenderError(RunError):
    """The notebook cannot be rendered from this checkout with these parameters."""

    state = "nothing was written."


class KaggleError(RunError):
    """The notebook cannot be pushed to Kaggle as required, or its run there failed."""

    state = "nothing was pushed."


class PushRefusedError(KaggleError):
    """Kaggle has not accepted a push; `passes`: it may at another time (a free session, new GPU hours)."""

    def __init__(self, what: str, *, passes: bool, state: str = "", remedy: str = "") -> None:
        self.passes = passes
        super().__init__(what, state=state, remedy=remedy)


class ClusterError(RunError):
    """The sweep engine is not installed, does not answer, or has no capacity for a run."""

    state = "nothing was started."


class BranchError(RunError):
    """A branch does not belong to a finished run, or the data that it names is not available."""

    state = "nothing was written."


class RemoteError(RunError):
    """The DVC or Git remote is not configured, or is not reachable with these credentials."""


class SandboxError(RunError):
    """The sandbox's repository, remote or dataset could not be created."""

    state = "nothing was started."


class DatasetError(RunError):
    """The dataset could not be pulled, or does not fit the experiment (`data.yaml not found`)."""

    state = "nothing was trained."


class WeightsError(RunError):
    """The pretrained weights or the checkpoint to resume from are missing or unusable."""

    state = "nothing was trained."


class RunHeldError(RunError):
    """Another session is training the same experiment."""


class CheckpointError(RunError):
    """An earlier session's checkpoint cannot be resumed, or belongs to a different training."""


class StopError(RunError):
    """A run cannot be stopped as asked: it is not under way, or is not on Kaggle."""

    state = "nothing was stopped."


class DiscardedError(RunError):
    """A person has discarded the run: it ends, and nothing of it is published."""


class TrainingError(RunError):
    """Training started and failed; the usual cause is CUDA out of memory."""


class EvaluationError(RunError):
    """Training succeeded, but evaluating its best weights failed."""


class ExportError(RunError):
    """Training succeeded, but exporting its best weights to another format failed."""


class PredictionError(RunError):
    """A path, an image or a device given for a prediction cannot be used."""

    state = "nothing was predicted."


class SyncError(RunError):
    """The publication failed and was rolled back: no branch, no new object, the models are unchanged."""


class DvcPushError(SyncError):
    """The DVC remote rejected or lost an upload (`failed to push data to the remote`)."""


class GitPushError(SyncError):
    """The Git remote rejected or lost a push (`Authentication failed`, a protected name, a read-only token)."""

    patience = 15.0
    """The longest pause, in seconds, after which the same push may succeed; 0: never, without a change."""


class TakenOverError(GitPushError):
    """Another session has taken over the run: this one publishes nothing more."""


class InDoubt(RunError):
    """The reply to the commit push was lost and the Git remote is unreachable: the run may or may not be published.

    Nothing is deleted in this state. Run `python -m lib recover` in any clone to resolve it.
    """


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, then each error that caused it or was being handled when it was raised."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
