"""Every error this project raises: what happened, what state the world is in, and what to do next.

One root, `RunError`; who catches it catches all of them and nothing else. A message never holds a credential: what
comes from outside (a client's answer, a command's output) passes through `Credentials.redact` before it gets here.
"""

from __future__ import annotations


class RunError(Exception):
    """Something stopped the run.

    `what` is one sentence on what happened, `state` what is true now (what was kept, what was undone), `remedy` what
    to do or run next. All three are shown, in this order.
    """

    def __init__(self, what: str, *, state: str = "", remedy: str = "") -> None:
        self.what, self.state, self.remedy = what, state, remedy
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.state:
            parts.append(f"State: {self.state}")
        if self.remedy:
            parts.append(f"What to do: {self.remedy}")
        return "\n".join(parts)


class ExperimentError(RunError):
    """The experiment's file is missing, is no YAML, or holds a key or value that cannot be."""


class CredentialsError(RunError):
    """Something in `secrets.json` is missing or malformed, or a service refuses it. Values are never shown."""


class CommandError(RunError):
    """A command of another program failed, or took longer than it may."""


class HostError(RunError):
    """This machine lacks what the run was rendered for: a GPU, a folder, a program."""


class InstallError(RunError):
    """The locked packages could not be installed over the host's torch."""


class PreflightError(RunError):
    """Something that the run will need is not as it must be; found before the dataset was pulled."""


class RenderError(RunError):
    """The notebook cannot be rendered from this checkout with these parameters."""


class KaggleError(RunError):
    """The notebook cannot be pushed to Kaggle as it must be, or its run there did not end well."""


class ClusterError(RunError):
    """A sweep's engine is not installed, does not answer, or has no room for a run."""


class BranchError(RunError):
    """A branch is no finished run's, or what it names cannot be had."""


class RemoteError(RunError):
    """The DVC or Git remote is not configured, or cannot be reached with these credentials."""


class SandboxError(RunError):
    """The sandbox's repository, remote or dataset could not be made."""


class DatasetError(RunError):
    """The dataset could not be pulled, or is not what the experiment needs (`data.yaml not found`)."""


class WeightsError(RunError):
    """The pretrained weights or the checkpoint to resume from are missing or unusable."""


class RunHeldError(RunError):
    """Another session trains the same experiment right now."""


class CheckpointError(RunError):
    """An earlier session's checkpoint cannot be gone on from, or is of a training that differs from this one."""


class TrainingError(RunError):
    """Training started and failed; CUDA out of memory is the usual cause."""


class EvaluationError(RunError):
    """Training succeeded, evaluating its best weights did not."""


class ExportError(RunError):
    """Training succeeded, bringing its best weights into another format did not."""


class PredictionError(RunError):
    """A path, a picture or a device that a model was to predict with cannot be used."""


class SyncError(RunError):
    """The publication failed and was undone: no branch, no new object, the models are where they were."""


class DvcPushError(SyncError):
    """The DVC remote refused or lost an upload (`failed to push data to the remote`)."""


class GitPushError(SyncError):
    """The Git remote refused or lost a push (`Authentication failed`, a protected name, a read-only token)."""


class InDoubt(RunError):
    """The answer to the commit push was lost and the Git remote cannot be asked: the run is published, or it is not.

    Nothing is deleted in this state. `python -m lib recover` settles it from any clone.
    """
