"""`python -m lib COMMAND`: what may be done by hand. Heavy libraries are imported by the command that needs them."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import click

from lib.cli.options import KAGGLE_USER, OLDER_THAN, PARAMETERS, SECRETS, SECRETS_DATASET, complete_branch
from lib.errors import RunError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def app() -> None:
    """Kaggle Training: everything that can be done by hand."""


@app.command()
@click.argument("module")
@click.option("--folder", type=Path, metavar="DIR", default=Path("build/sandbox"), help="Where the sandbox stands.")
@click.option("--data", type=Path, metavar="DIR", help="A dataset in YOLO format, in place of the drawn one.")
@click.option("--json", "as_json", is_flag=True, help="Print repository and commit as JSON.")
def sandbox(*, module: str, folder: Path, data: Path | None, as_json: bool) -> None:
    """Make the sandbox, or bring it up to date.

    A Git repository with this checkout, a DVC remote and a dataset of MODULE.
    """
    from lib.experiment.load import load_experiment
    from lib.experiment.modules import find_module
    from lib.remotes.repository import find_project
    from lib.sandbox.make import make_sandbox

    project = find_project(Path.cwd())
    made = make_sandbox(project, folder, load_experiment(find_module(module).small(project)), data)
    if as_json:
        print(json.dumps({"repository": str(made.origin), "commit": made.commit}))
    else:
        print(
            f"Repository: {made.origin}\nDVC remote: {made.remote}\nCommit:     {made.commit}\nPictures:   {made.sheet}"
        )


@app.command()
@click.argument("name")
@click.option("--from", "source", type=Path, metavar="FILE", required=True, help="The experiment it begins as.")
@PARAMETERS
def new(*, name: str, source: Path, parameters: tuple[tuple[str, str], ...]) -> None:
    """Make the next experiment from another one.

    Writes experiments/NUMBER_MODULE_NAME.yaml with the comments of FILE.
    """
    from lib.experiment.authoring import new_experiment
    from lib.remotes.repository import find_project

    project = find_project(Path.cwd())
    file, experiment = new_experiment(project, name, source, parameters)
    shown = file.relative_to(project)
    print(f"{shown}: {experiment.name}\nNext: uv run render.py {experiment.module} --experiment {shown}")


@app.command()
@click.argument("file", type=Path)
@PARAMETERS
def explain(*, file: Path, parameters: tuple[tuple[str, str], ...]) -> None:
    """Show what each value of an experiment means.

    Also where it comes from, and the ultralytics argument it becomes.
    """
    from lib.experiment.authoring import explain as look
    from lib.experiment.authoring import show_explained

    print(show_explained(look(file, parameters)))


@app.command()
def schema() -> None:
    """Write experiments/schema.json, for editors."""
    from lib.experiment.authoring import write_schema
    from lib.remotes.repository import find_project

    print(write_schema(find_project(Path.cwd())))


@app.command()
@click.argument("file", type=Path, default=Path("secrets.json"))
@click.option("--client", type=Path, metavar="JSON", help="Your OAuth client, or a service account's key.")
def credentials(*, file: Path, client: Path | None) -> None:
    """Make or complete secrets.json with you.

    Signs in to Google in the browser, asks for the keys, tries each at its service, and writes FILE.
    """
    from lib.remotes.accounts import make_secrets

    for account in make_secrets(file, client=client):
        print(account)


@app.command()
@click.argument("folder", type=Path, default=Path("build/wheels"))
@click.option("--python", metavar="VERSION", default="3.12", help="The Python of the machine that they are for.")
def wheels(*, folder: Path, python: str) -> None:
    """Gather what step 2 installs, for sessions without a network.

    Attach FOLDER as a Kaggle dataset.
    """
    from lib.kaggle.wheels import gather_wheels
    from lib.remotes.repository import find_project

    found = gather_wheels(find_project(Path.cwd()), folder, python=python)
    print(f"{found.count} wheels for Python {python}, {found.size / 2**20:.0f} MiB, in {found.folder}.")


@app.command()
@click.argument("experiment", type=Path)
@click.option("--accelerator", type=click.Choice(["t4x2", "p100", "none"]), default="none", help="What it must have.")
@SECRETS
def preflight(*, experiment: Path, accelerator: str, secrets: str) -> None:
    """Try on this machine what a run would need.

    EXPERIMENT is a YAML. Nothing stays; exits with 1 on errors.
    """
    from lib.experiment.load import load_experiment
    from lib.remotes.credentials import load_credentials
    from lib.train.preflight import preflight_here, show_preflight, stop_on_errors

    found = preflight_here(Path.cwd(), load_experiment(experiment), load_credentials(secrets), accelerator)
    print(show_preflight(found))
    stop_on_errors(found)


@app.command()
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


@app.command()
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
    with contextlib.redirect_stdout(sys.stderr):  # how far the fetching is is no prediction
        model = fetch_model(root, branch, load_credentials(secrets))
    folder = output or root / "build" / "predictions" / model.record["branch"]
    problems = 0
    for predicted in predict_on(model, images, folder, confidence=confidence, device=device):
        print(predicted, flush=True)
        problems += bool(predicted.problem)
    print(f"Drawn into {folder}")
    raise SystemExit(1 if problems else 0)


@app.command()
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


@app.command()
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


@app.command()
@click.argument("module")
@KAGGLE_USER
@click.option("--every", type=float, metavar="SECONDS", default=20.0, help="How often Kaggle is asked for its state.")
def watch(*, module: str, kaggle_user: str, every: float) -> None:
    """Follow a module's newest run on Kaggle to its end.

    Shows its state and log; exits with 1 if it did not end well.
    """
    from lib.experiment.modules import find_module
    from lib.kaggle.kernel import client_user, watch_kernel
    from lib.kaggle.notebook import configured_user, kernel_metadata

    user = kaggle_user or configured_user() or client_user()
    kernel = kernel_metadata(find_module(module), "none", user, "")["id"]
    print(f"Following {kernel}: https://www.kaggle.com/code/{kernel}", flush=True)
    branch = watch_kernel(kernel, every=every, say=lambda line: print(line, flush=True))
    if branch is None:
        print("The run is complete; its log names no branch that it has published.")
    else:
        print(f"The run is complete, and published as {branch}.\nBring it here with: python -m lib fetch {branch}")


@app.command()
@click.argument("experiments", type=Path, nargs=-1, required=True, metavar="EXPERIMENT...")
@PARAMETERS
@click.option("--address", metavar="ADDRESS", default="", help="A Ray cluster (auto: the one of this machine).")
@click.option("--gpus-per-run", type=click.FloatRange(0), default=1, help="GPUs that a run trains on; 0: the CPU.")
@click.option("--cpus-per-run", type=click.FloatRange(0), default=1, help="CPU cores that a run is counted with.")
@click.option("--retries", type=click.IntRange(0), default=3, help="How often a run may lose its node.")
@click.option("--folder", type=Path, metavar="DIR", default=Path("build/sweep"), help="Where runs work, on every node.")
@click.option("--sandbox", type=Path, metavar="DIR", help="Train in a sandbox there: no account, no network.")
@click.option("--allow-dirty", is_flag=True, help="Train the commit although the tree is dirty or it is not pushed.")
@SECRETS
def sweep(
    *,
    experiments: tuple[Path, ...],
    parameters: tuple[tuple[str, str], ...],
    address: str,
    gpus_per_run: float,
    cpus_per_run: float,
    retries: int,
    folder: Path,
    sandbox: Path | None,
    allow_dirty: bool,
    secrets: str,
) -> None:
    """Train many experiments, on this machine or a Ray cluster.

    Each EXPERIMENT is a YAML, or a matrix of them (its key sweep). What the same commit has published is skipped, and
    the rest goes on from its checkpoints. Compares them in the end; exits with 1 if one is not published.
    """
    from lib.experiment.authoring import typed
    from lib.experiment.matrix import read_sweep
    from lib.remotes.repository import find_project
    from lib.sweep.engine import Cluster
    from lib.sweep.sweep import train_all

    chosen = read_sweep(experiments, typed(parameters))
    complete = train_all(
        find_project(Path.cwd()), chosen, Cluster(address, gpus=gpus_per_run, cpus=cpus_per_run, retries=retries),
        sandbox=sandbox.resolve() if sandbox else None, allow_dirty=allow_dirty, secrets=secrets,
        folder=folder.resolve(), watched=sys.stdout.isatty(),
    )  # fmt: skip
    raise SystemExit(0 if complete else 1)


@app.command()
@SECRETS
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(*, secrets: str, as_json: bool) -> None:
    """Show where every experiment stands.

    Finished runs with metrics, checkpoints, sessions and open publications, from the Git remote alone.
    """
    from lib.remotes.credentials import load_credentials
    from lib.results.status import read_status, show_status

    entries = read_status(Path.cwd(), load_credentials(secrets))
    print(json.dumps([entry.as_dict() for entry in entries], indent=2) if as_json else show_status(entries))


@app.command()
@OLDER_THAN
@SECRETS
def recover(*, older_than: float, secrets: str) -> None:
    """Undo what dead runs left unfinished.

    On both remotes of this clone; waits until their lease is over.
    """
    import time

    from lib.remotes.clone import clone_with
    from lib.remotes.credentials import load_credentials
    from lib.sync import recover as settle

    credentials = load_credentials(secrets)
    deadline = time.monotonic() + older_than
    with clone_with(Path.cwd(), credentials) as clone:
        while left := settle(clone, credentials, older_than=older_than):
            if time.monotonic() > deadline + 60:
                print(f"{left} unfinished publications are alive or unreadable here, and are left alone.")
                raise SystemExit(1)
            print(f"Waiting for {left} unfinished publications to end or to expire …", flush=True)
            time.sleep(min(15, max(1, older_than / 10)))
    print("No unfinished publication is left.")


@app.command()
@OLDER_THAN
@SECRETS
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def check(*, older_than: float, secrets: str, as_json: bool) -> None:
    """Look at both remotes and say what is wrong.

    Nothing is deleted; exits with 1 if something is wrong.
    """
    from lib.remotes.clone import clone_with
    from lib.remotes.credentials import load_credentials
    from lib.sync import check as look

    def note(line: str) -> None:
        print(line, file=sys.stderr)

    credentials = load_credentials(secrets)
    with clone_with(Path.cwd(), credentials) as clone:
        checked = look(clone, credentials, older_than=older_than, say=note)
    if as_json:
        print(checked.to_json())
    else:
        for finding in checked.findings:
            print(f"{finding.kind}: {finding.what}.\n  What to do: {finding.remedy}.")
        print(
            f"{checked.refs} branches and tags, {checked.objects} objects, {checked.intents} unfinished publications:"
        )
        print("Nothing is wrong." if checked.is_healthy else "Something is wrong.")
    raise SystemExit(0 if checked.is_healthy else 1)


def main() -> None:
    """Run a command; an error of this project is shown as its three sentences, without a traceback."""
    try:
        app(complete_var="_LIB_COMPLETE")  # by itself it would have spaces: `python -m lib`
    except RunError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
