"""Commands for active runs: watch one on Kaggle, or train many (sweep)."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.core import ParameterSource

from lib.cli.options import KAGGLE_USER, PARAMETERS, PROJECT, SECRETS_DATASET, Project, pass_project

ONLY_RAY = ("address", "gpus_per_run", "cpus_per_run", "retries", "sandbox")
ONLY_KAGGLE = ("slots", "once", "kaggle_user", "secrets_dataset")
"""Options of `sweep` that one engine has."""


@click.command()
@click.argument("experiment")
@KAGGLE_USER
@click.option("--every", type=float, metavar="SECONDS", default=20.0, help="Time between two requests for its state.")
@pass_project
def watch(project: Project, *, experiment: str, kaggle_user: str, every: float) -> None:
    """Follow a run on Kaggle to its end.

    EXPERIMENT is a YAML file, a module (its baseline), or a kernel, OWNER/SLUG or OWNER/SLUG/VERSION; without a version
    it is the newest one. Shows its state and log; exits with 1 if the run failed or was cancelled.

    \b
    Example:
        uv run python -m lib watch detection
    """
    from lib.experiment.load import load_experiment
    from lib.experiment.modules import find_module
    from lib.kaggle.client import client_user
    from lib.kaggle.kernel import kernel_name
    from lib.kaggle.notebook import configured_user
    from lib.kaggle.watch import watch_kernel

    kernel = experiment
    is_file = experiment.endswith((".yaml", ".yml"))
    if is_file or "/" not in experiment:
        file = Path(experiment) if is_file else project.root / find_module(experiment).baseline
        kernel = kernel_name(load_experiment(file).key, kaggle_user or configured_user() or client_user())
    branch = watch_kernel(kernel, every=every, say=lambda line: print(line, flush=True))
    if branch is None:
        print("The run is complete; its log names no published branch.")
    else:
        print(f"The run is complete, and published as {branch}.\nDownload it with: python -m lib fetch {branch}")


@click.command()
@click.argument("run", metavar="EXPERIMENT|BRANCH")
@click.option("--discard", is_flag=True, help="Publish nothing, and delete its checkpoint.")
@click.option("--now", is_flag=True, help="Delete its kernel on Kaggle, without waiting for the epoch.")
@click.option("--yes", is_flag=True, help="With --now: do not ask.")
@KAGGLE_USER
@PROJECT
def stop(project: Project, *, run: str, discard: bool, now: bool, yes: bool, kaggle_user: str) -> None:
    """Stop a run after the epoch under way, wherever it trains.

    It publishes what it has, marked as stopped, and keeps its checkpoint; nothing goes on with it without --resume.
    EXPERIMENT is a YAML file, a module (its baseline), or module/name; BRANCH is a checkpoint's or a run's.

    \b
    Example:
        uv run python -m lib stop detection
    """
    from lib.experiment.modules import MODULES
    from lib.kaggle.client import client_user
    from lib.kaggle.notebook import configured_user
    from lib.sync import Refs
    from lib.train.stop import active_kernel, ask_to_stop, describe_loss, key_of, stop_now

    key = key_of(str(project.root / MODULES[run].baseline) if run in MODULES else run)
    root, credentials = project.clone, project.credentials
    refs = Refs(root, credentials)
    if not now:
        ask_to_stop(refs, key, discard=discard)
        then = "publishes nothing" if discard else "is published as stopped"
        print(f"{key} was asked to stop: it ends after the epoch under way, and {then}.")
        print("It looks about once a minute. See its state with: python -m lib status")
        return
    kernel = active_kernel(key, kaggle_user or configured_user() or client_user())
    print(f"This deletes {kernel} on Kaggle, with its logs and outputs. {describe_loss(refs, key, discard=discard)}")
    if not yes:
        click.confirm("Delete it?", abort=True)
    stop_now(root, credentials, key, kernel, discard=discard)
    print(f"{key} is stopped: nothing goes on with it without --resume.")


@click.command()
@click.argument("experiments", type=Path, nargs=-1, required=True, metavar="EXPERIMENT...")
@PARAMETERS
@click.option("--on", "engine", type=click.Choice(["ray", "kaggle"]), default="ray", help="Where the runs are trained.")
@click.option("--address", metavar="ADDRESS", default="", help="A Ray cluster (auto: the one of this machine).")
@click.option("--gpus-per-run", type=click.FloatRange(0), default=1, help="GPUs per run; 0: train on the CPU.")
@click.option("--cpus-per-run", type=click.FloatRange(0), default=1, help="CPU cores reserved per run.")
@click.option("--retries", type=click.IntRange(0), default=3, help="How often a run may lose its node.")
@click.option(
    "--folder", type=Path, metavar="DIR", default=Path("build/sweep"), help="The runs' folder, on every node."
)
@click.option("--sandbox", type=Path, metavar="DIR", help="Train in a sandbox there: no account, no network.")
@click.option("--resume", is_flag=True, help="Go on with stopped runs, and on Kaggle with failed ones.")
@click.option("--allow-dirty", is_flag=True, help="Accept a dirty tree, or a commit that is not pushed.")
@click.option("--slots", type=click.IntRange(1), default=2, help="Kaggle: GPU sessions at a time.")
@click.option("--once", is_flag=True, help="Kaggle: push what is due and end, with 3 if a run is not published yet.")
@KAGGLE_USER
@SECRETS_DATASET
@PROJECT
def sweep(
    project: Project,
    *,
    experiments: tuple[Path, ...],
    parameters: tuple[tuple[str, str], ...],
    engine: str,
    address: str,
    gpus_per_run: float,
    cpus_per_run: float,
    retries: int,
    folder: Path,
    sandbox: Path | None,
    resume: bool,
    allow_dirty: bool,
    slots: int,
    once: bool,
    kaggle_user: str,
    secrets_dataset: str,
) -> None:
    """Train many experiments, on this machine, a Ray cluster or Kaggle.

    Each EXPERIMENT is a YAML file, or a matrix (key `sweep`). Skips what the same commit has published or a person has
    stopped, and resumes the rest from its checkpoints. Compares all at the end; exits with 1 if one is not published.

    \b
    Example:
        uv run python -m lib sweep experiments/000_det_sandbox.yaml --sandbox build/sandbox --gpus-per-run 0
    """
    from lib.experiment.authoring import typed
    from lib.experiment.matrix import read_sweep
    from lib.sweep.sweep import Engine, train_all

    context = click.get_current_context()
    for name in ONLY_RAY if engine == "kaggle" else ONLY_KAGGLE:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name.replace('_', '-')} has no meaning with --on {engine}.")
    chosen = read_sweep(experiments, typed(parameters))
    trainer: Engine
    if engine == "kaggle":
        from lib.sweep.kaggle import Kaggle

        trainer = Kaggle(project.root, user=kaggle_user, dataset=secrets_dataset, slots=slots, resume=resume)
    else:
        from lib.sweep.engine import Cluster

        trainer = Cluster(address, gpus=gpus_per_run, cpus=cpus_per_run, retries=retries, resume=resume)
    status = train_all(
        project.root, chosen, trainer, sandbox=sandbox.resolve() if sandbox else None, allow_dirty=allow_dirty,
        secrets=project.secrets, folder=folder.resolve(), watched=sys.stdout.isatty(), once=once,
    )  # fmt: skip
    raise SystemExit(status)
