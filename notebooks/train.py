# ---
# jupyter:
#   jupytext:
#     notebook_metadata_filter: -jupytext.text_representation.jupytext_version
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Kaggle Training
#
# Trains one module (detection or localization of shipping containers), evaluates it, and publishes weights and results
# together or not at all. Made for Kaggle's GPU T4 x2; without a repository it runs in a sandbox on any machine, with no
# account and no network.
#
# Everything to choose is in the next cell. `render.py` fills it in from an experiment.

# %% tags=["parameters"]
module = "detection"  # what is trained: "detection", "localization", or what else is a module of the repository
experiment = ""  # the experiment: a YAML in the repository, or its whole content; empty: the module's small one
repository = ""  # Git URL to clone and to publish to; empty: a sandbox made from the checkout around this notebook
commit = ""  # the exact commit to train; empty: the newest of the repository's default branch
secrets = ""  # path of secrets.json; empty: looked for in both mounts of a Kaggle dataset, then in the environment
accelerator = "t4x2"  # what the run was rendered for: "t4x2", "p100" or "none"; another one only warns
working = ""  # folder for clone, artifacts and log; empty: /kaggle/working, or a new one in the sandbox
sandbox = "build/sandbox"  # folder of the sandbox, below the checkout; used where no repository is given
epochs = None  # training.epochs of the experiment; None leaves it as it is
batch_size = None  # training.batch_size of the experiment; None leaves it as it is
learning_rate = None  # training.learning_rate of the experiment; None leaves it as it is
resume_from = None  # model.resume_from of the experiment, the path of a last.pt; None leaves it as it is

# %% [markdown]
# ## 0/10: Verify GPU (T4 x2)
# The driver is asked before anything costs time. Until step 2 only the standard library is used.

# %%
import json
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

started, begun = datetime.now(UTC), time.monotonic()
steps = []  # (title, start) of every step, for run.json and the summary
on_kaggle = Path("/kaggle/working").is_dir()
projects = [folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "render.py").is_file()]
sandbox = Path(*projects[:1], sandbox).resolve()
runs = Path("/kaggle/working") if on_kaggle else sandbox / "runs" / f"{module}-{started:%Y%m%d-%H%M%S}"
working = Path(working).resolve() if working else runs
scratch = Path("/kaggle/tmp/kaggle-training") if on_kaggle else working / "scratch"
working.mkdir(parents=True, exist_ok=True)


def say(text):
    """Print a line and keep it: run.log begins before there is anything to write it with."""
    print(text, flush=True)
    with (working / "run.log").open("a", encoding="utf-8") as log_file:
        log_file.write(f"{text}\n")


def step(title):
    steps.append((title, time.time()))
    passed = int(time.time() - started.timestamp())
    line = f"\n[{passed // 3600:02d}:{passed // 60 % 60:02d}:{passed % 60:02d}] {title}"
    print(line, flush=True) if "log" in globals() else say(line)


def stop(what, remedy):
    with (working / "run.log").open("a", encoding="utf-8") as log_file:
        log_file.write(f"{what}\nWhat to do: {remedy}\n")
    raise SystemExit(f"{what}\nWhat to do: {remedy}")


step("0/10: Verify GPU (T4 x2)")
wanted = {"t4x2": ["T4", "T4"], "p100": ["P100"], "none": []}
if accelerator not in wanted:
    stop(f"accelerator is {accelerator!r}; it may be {', '.join(wanted)}.", "correct the parameter and run again.")
asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
gpus = subprocess.run(asked, capture_output=True, text=True).stdout.splitlines() if shutil.which(asked[0]) else []
say(f"GPUs: {', '.join(gpus) or 'none'}")
if on_kaggle and wanted[accelerator] and not gpus:
    stop(f"Rendered for {accelerator}, and there is no GPU.", "choose GPU T4 x2 in the notebook's settings, run again.")
right = [word for name, word in zip(gpus, wanted[accelerator], strict=False) if word in name]
if on_kaggle and right != wanted[accelerator]:
    say(f"Warning: rendered for {accelerator}; training takes what is here.")

# %% [markdown]
# ## 1/10: Clone repository from GitHub
# The exact commit, as shallow as it can be. The token goes into the environment of these commands alone. From the end
# of this step on everything printed goes to `run.log` as well, without credentials.

# %%
step("1/10: Clone repository from GitHub")
if not repository:
    if on_kaggle or not projects:
        stop(
            "No repository is given.",
            "make this notebook with render.py, or set the parameter repository to a Git URL.",
        )
    make = [sys.executable, "-m", "lib", "sandbox", module, "--folder", str(sandbox), "--json"]
    made = subprocess.run(make, cwd=projects[0], capture_output=True, text=True)
    if made.returncode:
        stop(made.stderr, "as it says above.")
    repository, commit = (json.loads(made.stdout.splitlines()[-1])[key] for key in ("repository", "commit"))

token = os.environ.get("GITHUB_TOKEN", "")
inputs = Path("/kaggle/input")
for file in [Path(secrets)] if secrets else [*inputs.glob("*/secrets.json"), *inputs.glob("datasets/*/*/secrets.json")]:
    try:
        token = json.loads(file.read_text(encoding="utf-8")).get("GITHUB_TOKEN", token)
    except (OSError, ValueError, AttributeError) as error:  # never with what stands in it
        stop(
            f"{file} cannot be read as a JSON object ({type(error).__name__}).", "correct it, or the parameter secrets."
        )
git_environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
git_environment |= {"GIT_HTTP_LOW_SPEED_LIMIT": "1000", "GIT_HTTP_LOW_SPEED_TIME": "120"}  # bytes a second for so long
if token and repository.startswith("http"):
    # git asks for it, and gives it to this host alone: a header would follow a redirect
    helper = '!f() { test "$1" = get && printf "username=x-access-token\\npassword=%s\\n" "$GIT_TOKEN"; }; f'
    named = f"credential.{'/'.join(repository.split('/')[:3])}.helper"
    # the empty one first: whoever else is asked for passwords would be given this one to keep
    setting = {"COUNT": "2", "KEY_0": "credential.helper", "VALUE_0": "", "KEY_1": named, "VALUE_1": helper}
    git_environment |= {f"GIT_CONFIG_{key}": value for key, value in setting.items()} | {"GIT_TOKEN": token}
del token


def git(*words):
    return subprocess.run(["git", *words], cwd=root, env=git_environment, capture_output=True, text=True, timeout=600)


def fetch(*words):
    """Fetch, and say every ten seconds how far it is; gives what went wrong, or 0."""
    command, told, due = ["git", "fetch", "--progress", *words], [], time.monotonic() + 10
    with subprocess.Popen(command, cwd=root, env=git_environment, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:  # git rewrites its line; read as text, each state of it is a line
            if "% (" not in line:
                told.append(line)
            elif time.monotonic() > due:
                due = time.monotonic() + 10
                say(line.rstrip())
    return process.returncode and ("".join(told) or f"git ended with status {process.returncode}")


root = working / repository.rstrip("/").rpartition("/")[2].removesuffix(".git")
root.mkdir(exist_ok=True)
git("init", "--quiet")  # run again in the same session, it keeps what is there
git("remote", "remove", "origin")
git("remote", "add", "origin", repository)
# another session of the experiment is watched from here on: it is dead when it does not move for its lease
noted = git("ls-remote", "origin", "refs/runs/*", "refs/heads/kaggle-runs/*").stdout, time.monotonic()
wrong = fetch("--depth=1", "origin", commit or "HEAD") and fetch("origin")  # a host that gives no single commits
checked_out = git("checkout", "--quiet", "--detach", commit or "FETCH_HEAD")
if wrong or checked_out.returncode:
    stop(
        f"{repository} at {commit or 'its newest commit'} cannot be cloned:\n{wrong or checked_out.stderr}",
        "check the address, that internet is on in the notebook's settings, that the commit is pushed, and, for a "
        "private repository, GITHUB_TOKEN in secrets.json.",
    )
commit = git("rev-parse", "HEAD").stdout.strip()
os.chdir(root)
sys.path.insert(0, str(root))
say(f"{repository} at {commit} is in {root}")

from lib.errors import RunError
from lib.log import RunLog
from lib.remotes.credentials import load_credentials

try:
    credentials = load_credentials(secrets)
except RunError as error:  # run.log is not redacted yet; an error never shows a value
    stop(error.what, error.remedy)
log = RunLog(working / "run.log", credentials.redact)

# %% [markdown]
# ## 2/10: Install dependencies (Hybrid Strategy)
# Hardware: the host's own torch and CUDA stay. Logic: everything else as pinned in `uv.lock`, in a separate folder.

# %%
step("2/10: Install dependencies (Hybrid Strategy)")
from lib.kaggle.install import install

print(install(root, scratch / "packages"))

# %% [markdown]
# ## 3/10: Configure DVC with Google Drive

# %%
step("3/10: Configure DVC with Google Drive")
from lib.experiment.load import load_experiment
from lib.experiment.modules import find_module
from lib.kaggle.host import find_host
from lib.remotes.clone import configure_dvc, configure_git
from lib.session import Session

shortcuts = {
    "training.epochs": epochs,
    "training.batch_size": batch_size,
    "training.learning_rate": learning_rate,
    "model.resume_from": resume_from,
}
overrides = {key: value for key, value in shortcuts.items() if value is not None}
chosen = load_experiment(experiment or find_module(module).small(root), overrides, module=module)
session = Session(
    root, working, scratch, chosen, credentials, find_host(working, scratch), commit, credentials.redact(repository),
    accelerator, started, begun, steps,
)  # fmt: skip
log.also_in(session.artifacts)
print(configure_dvc(root, scratch, credentials))

# %% [markdown]
# ## 4/10: Configure Git with GitHub token
# Unfinished publications of other runs are reported here, and rolled back or finished before this run publishes. If an
# earlier session of this experiment left a checkpoint, training resumes from it.

# %%
step("4/10: Configure Git with GitHub token")
from lib.sync import recover
from lib.train.checkpoints import CheckpointUploader, fetch_checkpoint, find_checkpoint, hold_run

print(configure_git(root, credentials))
unfinished = recover(root, credentials)
print(f"Unfinished publications of other runs: {unfinished}")
hold = hold_run(session, noted)
log.on_error(lambda _: hold.release())
checkpoint = find_checkpoint(session)
print(checkpoint.describe() if checkpoint else "There is no checkpoint of an earlier session to resume.")

# %% [markdown]
# ## 5/10: Configure WandB for experiment tracking

# %%
step("5/10: Configure WandB for experiment tracking")
from lib.train.tracking import configure_tracking

tracking = configure_tracking(session)
print(f"Dashboard: {tracking.address}")

# %% [markdown]
# ### Preflight
# Everything the run will need is tested now: a GPU by computing on it, a token by pushing with it. An error stops here.

# %% tags=["nbval-ignore-output"]
from lib.train.launch import prepare_library
from lib.train.preflight import preflight, show_preflight, stop_on_errors

prepare_library(scratch)
print("Preflight: checking everything that the run will need")
found = preflight(session)
print(show_preflight(found))
stop_on_errors(found)

# %% [markdown]
# ## 6/10: Pull dataset via DVC

# %%
step("6/10: Pull dataset via DVC")
from lib.data.dataset import pull_dataset

dataset = pull_dataset(session)
print(dataset.describe())
print(dataset.show_warnings())

# %% [markdown]
# ## 7/10: Display training configuration

# %%
step("7/10: Display training configuration")
from lib.results.report import describe_run

print(describe_run(session))

# %% [markdown]
# ## 8/10: Download pretrained YOLO weights

# %%
step("8/10: Download pretrained YOLO weights")
from lib.train.weights import fetch_weights

hold.take()
checkpoint = find_checkpoint(session)  # again: from now on no other session replaces it
start = fetch_weights(session, fetch_checkpoint(session, checkpoint) if checkpoint else None)
tracking = tracking.resumed(start.run_path)
print(start.describe())

# %% [markdown]
# ## 9/10: Run training + Automatic model sync
# One subprocess per GPU. Meanwhile checkpoints are uploaded: if this session ends early, the next one resumes from
# them. From here on, an error also sends a W&B alert.

# %% tags=["nbval-ignore-output"]
step("9/10: Run training + Automatic model sync")
from lib.train.launch import train
from lib.train.tracking import finish_tracking

print(f"Dashboard: {tracking.address}")


def on_error(error):
    if isinstance(error, Exception):
        uploader.wait()
    hold.release()
    finish_tracking(tracking, "failed", {}, credentials.redact(str(error)))


uploader = CheckpointUploader(session, dataset.md5, hold)
log.on_error(on_error)
with uploader:
    trained = train(session, dataset.data_file, start, tracking)

# %% [markdown]
# The best weights are measured on the validation and the test split.

# %% tags=["nbval-ignore-output"]
from lib.results.evaluate import evaluate

evaluated = evaluate(session, dataset, trained)

# %% [markdown]
# They are exported to the formats that the experiment requests under `export`.

# %% tags=["nbval-ignore-output"]
from lib.train.export import export

exported = export(session, trained)

# %%
from lib.results.report import Results, write_report
from lib.results.summary import show_metrics

results = Results(dataset, start, tracking, trained, evaluated, exported)
write_report(session, results)
show_metrics(evaluated)

# %% [markdown]
# Weights go to the DVC remote, everything else to a new branch: both, or neither. A training that failed half-way is
# published too, marked as failed, unless `session.on_failure` is `keep`.

# %% tags=["nbval-ignore-output"]
from lib.results.report import publication
from lib.sync import sync_outputs

if trained.state == "failed" and chosen.session.on_failure == "keep":
    raise trained.error
uploader.wait()
published = sync_outputs(publication(session, results, hold), credentials)
hold.release()
summary = {"branch": published.branch, "commit": published.commit, **evaluated.flat()}
finish_tracking(tracking, trained.state, summary, "\n".join(filter(None, [published.branch, trained.reason])))
log.on_error(None)

# %% [markdown]
# ## 10/10: Cleanup (clear GPU cache)

# %%
step("10/10: Cleanup (clear GPU cache)")
from lib.train.launch import free_gpu_memory

print(free_gpu_memory())

# %% [markdown]
# ## Results

# %% tags=["nbval-ignore-output"]
from lib.results.summary import show_images, show_summary

show_summary(session, results)
show_images(session)
if error := trained.error or evaluated.missing or exported.missing:
    raise error
log.close()
