"""Commands for published runs: fetch, predict, compare, rerun."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from lib.cli.options import KAGGLE_USER, SECRETS, SECRETS_DATASET, complete_branch


@click.command()
@click.argument("branch", required=False, shell_complete=complete_branch)
@click.option("--output", type=Path, metavar="DIR", help="Where the files go; without it build/models/BRANCH.")
@SECRETS
def fetch(*, branch: str | None, output: Path | None, secrets: str) -> None:
    """Bring a published run's weights and results here.

    Whole, without touching the checkout and without the dataset. Without BRANCH it lets you choose among the newest.
    """
    from lib.remotes.credentials import load_credentials
    from lib.remotes.repository import find_project
    from lib.results.fetch import fetch_model
    from lib.results.published import ask_for_run, list_runs
    from lib.sync import Refs

    root, credentials = find_project(Path.cwd()), load_credentials(secrets)
    chosen = branch or ask_for_run(list_runs(Refs(root, credentials)), terminal=sys.stdin.isatty())
    print(fetch_model(root, chosen, credentials, output).describe())


@click.command()
@click.argument("branch", shell_complete=complete_branch)
@click.argument("images", type=Path, nargs=-1, required=True, metavar="IMAGE...")
@click.option("--output", type=Path, metavar="DIR", help="Where they are drawn; without it build/predictions/BRANCH.")
@click.option("--confidence", type=click.FloatRange(0, 1), default=0.25, help="Of the least sure that is shown.")
@click.option("--device", metavar="DEVICE", default="", help="cpu or a GPU's number; without it what is there.")
@SECRETS
def predict(
    *, branch: str, images: tuple[Path, ...], output: Path | None, confidence: float, device: str, secrets: str
) -> None:
    """Draw a published model's predictions on pictures.

    The model of BRANCH is fetched where it is not here yet; an IMAGE may be a folder of them. Prints a line a picture
    and draws it. Exits with 1 if one cannot be read.
    """
    from lib.remotes.credentials import load_credentials
    from lib.remotes.repository import find_project
    from lib.results.fetch import fetch_model
    from lib.results.predict import predict as predict_on

    root = find_project(Path.cwd())
    with contextlib.redirect_stdout(sys.stderr):  # keep the progress of the fetch out of the printed predictions
        model = fetch_model(root, branch, load_credentials(secrets))
    folder = output or root / "build" / "predictions" / model.record["branch"]
    problems = 0
    for predicted in predict_on(model, images, folder, confidence=confidence, device=device):
        print(predicted, flush=True)
        problems += bool(predicted.problem)
    print(f"Drawn into {folder}")
    raise SystemExit(1 if problems else 0)


@click.command()
@click.argument("branches", nargs=-1, metavar="[BRANCH]...", shell_complete=complete_branch)
@click.option("--output", type=Path, metavar="PNG", default=Path("build/compare.png"), help="Where the curves go.")
@SECRETS
@click.option("--json", "as_json", is_flag=True, help="Print metrics and differences as JSON.")
def compare(*, branches: tuple[str, ...], output: Path, secrets: str, as_json: bool) -> None:
    """Show published runs side by side.

    Metrics, what they were made from where it differs, and their curves in one picture. Without BRANCH the newest
    runs of the experiment that was trained last.
    """
    from lib.remotes.credentials import load_credentials
    from lib.results import compare as side_by_side
    from lib.sync import Refs

    sides = side_by_side.read_sides(Refs(Path.cwd(), load_credentials(secrets)), branches)
    side_by_side.draw_curves(sides, output)
    print(side_by_side.as_json(sides, output) if as_json else side_by_side.show_sides(sides))
    if not as_json:
        print(f"\nCurves: {output}")


@click.command()
@click.argument("branch", shell_complete=complete_branch)
@click.option("--output", type=Path, metavar="DIR", help="Where the files go; without it build/BRANCH.")
@KAGGLE_USER
@SECRETS_DATASET
@SECRETS
def rerun(*, branch: str, output: Path | None, kaggle_user: str, secrets_dataset: str, secrets: str) -> None:
    """Render a published run once more.

    Its own notebook, commit, dataset and experiment, as BRANCH names them, ready for Kaggle.
    """
    from lib.kaggle.notebook import configured_user, ways_to_kaggle
    from lib.remotes.credentials import load_credentials
    from lib.remotes.repository import find_project
    from lib.results.rerun import rerun as render_again

    user = kaggle_user or configured_user()
    rendered, record = render_again(
        find_project(Path.cwd()), branch, load_credentials(secrets), output, user, secrets_dataset
    )
    print(f"{rendered}\nTrains:   what {record.branch} was trained from, at commit {record.commit}")
    if record.resumed_from:
        print(f"Needs:    {record.resumed_from}, from which that run went on")
    print(f"Was with: {', '.join(f'{name} {version}' for name, version in record.versions.items())}")
    print(ways_to_kaggle(rendered, user))
