"""Commands for published runs: fetch, predict, compare, rerun."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from lib.cli.options import KAGGLE_USER, PROJECT, SECRETS_DATASET, Project, complete_branch


@click.command()
@click.argument("branch", required=False, shell_complete=complete_branch)
@click.option("--output", type=Path, metavar="DIR", help="Folder of the files; default: build/models/BRANCH.")
@PROJECT
def fetch(project: Project, *, branch: str | None, output: Path | None) -> None:
    """Download the weights and the results of a published run, or the weights of a checkpoint.

    The checkout stays unchanged, and the dataset is not downloaded. Without BRANCH, offers the newest runs to choose.

    \b
    Example:
        uv run python -m lib fetch kaggle-train-detection-exp001-yolo11s-baseline-20251223-143000
    """
    from lib.results.fetch import fetch_checkpoint_files, fetch_model
    from lib.results.published import ask_for_run
    from lib.sync import Refs

    chosen = branch or ask_for_run(Refs(project.root, project.credentials))
    if chosen.startswith("kaggle-checkpoint-"):
        files = fetch_checkpoint_files(project.root, chosen, project.credentials, output)
        print("\n".join(map(str, files)) or f"{chosen} is of an earlier version: `git switch {chosen} && dvc pull`")
        return
    print(fetch_model(project.root, chosen, project.credentials, output).describe())


@click.command("predict")
@click.argument("branch", shell_complete=complete_branch)
@click.argument("images", type=Path, nargs=-1, required=True, metavar="IMAGE...")
@click.option("--output", type=Path, metavar="DIR", help="Folder of the images; default: build/predictions/BRANCH.")
@click.option("--confidence", type=click.FloatRange(0, 1), default=0.25, help="The lowest confidence to show.")
@click.option("--device", metavar="DEVICE", default="", help="cpu or a GPU's number; default: a GPU if there is one.")
@PROJECT
def predict_command(
    project: Project, *, branch: str, images: tuple[Path, ...], output: Path | None, confidence: float, device: str
) -> None:
    """Draw the predictions of a published model on images.

    Fetches the model of BRANCH if it is missing; an IMAGE may be a folder of images. Prints one line per image and
    draws it. Exits with 1 if an image cannot be read.

    \b
    Example:
        uv run python -m lib predict kaggle-train-detection-exp001-yolo11s-baseline-20251223-143000 photos
    """
    from lib.results.fetch import fetch_model
    from lib.results.predict import predict

    with contextlib.redirect_stdout(sys.stderr):  # keep the progress of the fetch out of the printed predictions
        model = fetch_model(project.root, branch, project.credentials)
    folder = output or project.root / "build" / "predictions" / model.record.branch
    problems = 0
    for predicted in predict(model, images, folder, confidence=confidence, device=device):
        print(predicted, flush=True)
        problems += bool(predicted.problem)
    print(f"Drawn into {folder}")
    raise SystemExit(1 if problems else 0)


@click.command("compare")
@click.argument("branches", nargs=-1, metavar="[BRANCH]...", shell_complete=complete_branch)
@click.option("--output", type=Path, metavar="PNG", default=Path("build/compare.png"), help="File of the curves.")
@PROJECT
@click.option("--json", "as_json", is_flag=True, help="Print metrics and differences as JSON.")
def compare_command(project: Project, *, branches: tuple[str, ...], output: Path, as_json: bool) -> None:
    """Compare published runs.

    Shows their metrics, the differences of their experiments, and their curves in one image. Without BRANCH, compares
    the newest runs of the experiment that was trained last.

    \b
    Example:
        uv run python -m lib compare --output build/compare.png --secrets secrets.json
    """
    from lib.results import compare
    from lib.sync import Refs

    runs = compare.read_runs(Refs(project.clone, project.credentials), branches)
    compare.draw_curves(runs, output)
    print(compare.as_json(runs, output) if as_json else f"{compare.show_runs(runs)}\n\nCurves: {output}")


@click.command("rerun")
@click.argument("branch", shell_complete=complete_branch)
@click.option("--output", type=Path, metavar="DIR", help="Folder of the files; default: build/BRANCH.")
@click.option("--accelerator", type=click.Choice(["t4x2", "p100", "none"]), help="Default: that of the run.")
@click.option("--push", is_flag=True, help="Push it to Kaggle, where it starts.")
@click.option("--resume", is_flag=True, help="With --push: go on with a run that was stopped by hand.")
@click.option("--anyway", is_flag=True, help="With --push: push even if too few GPU hours are left of the week.")
@KAGGLE_USER
@SECRETS_DATASET
@PROJECT
def rerun_command(
    project: Project,
    *,
    branch: str,
    output: Path | None,
    accelerator: str | None,
    push: bool,
    resume: bool,
    anyway: bool,
    kaggle_user: str,
    secrets_dataset: str,
) -> None:
    """Render a published run again; with --push, start it on Kaggle.

    Uses the notebook, commit, dataset and experiment that BRANCH records; the result is ready for Kaggle.

    \b
    Example:
        uv run python -m lib rerun kaggle-train-detection-exp001-yolo11s-baseline-20251223-143000
    """
    from lib.kaggle.kernel import push_rendered
    from lib.kaggle.notebook import ways_to_kaggle
    from lib.results.rerun import rerun

    made = rerun(
        project.root, branch, project.credentials, output, kaggle_user, secrets_dataset,
        accelerator=accelerator or "", push=push, resume=resume, anyway=anyway,
    )  # fmt: skip
    record = made.record
    print(f"{made.rendered}\nTrains:   the experiment of {record.branch}, at commit {record.commit}")
    if record.resumed_from:
        print(f"Needs:    {record.resumed_from}, from which that run resumed")
    print(f"Versions: {', '.join(f'{name} {version}' for name, version in record.versions.items())}")
    if push:
        push_rendered(made.rendered.notebook.parent, made.needed)
    else:
        print(ways_to_kaggle(made.rendered, made.user))
