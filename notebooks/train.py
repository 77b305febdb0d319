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
# The driver is asked before anything costs time. Until step 2 only the standard library is used. The collapsed cell
# holds what steps 0 and 1 do, `notebooks/bootstrap.py`.

# %% tags=["bootstrap"]
# a rendered notebook has the text of notebooks/bootstrap.py here, with the same imports
import sys
import time
from pathlib import Path

folders = [folder / "notebooks" for folder in (Path.cwd(), *Path.cwd().parents)]
sys.path += [str(folder) for folder in folders if (folder / "bootstrap.py").is_file()][:1]
from bootstrap import Bootstrap

# %%
if "log" in globals():  # run again in the same session
    globals()["log"].close()
boot = Bootstrap(module, working, sandbox)
started, begun, steps, step = boot.started, boot.begun, boot.steps, boot.step
working, scratch = boot.working, boot.scratch

step("0/10: Verify GPU (T4 x2)")
boot.verify_gpu(accelerator)

# %% [markdown]
# ## 1/10: Clone repository from GitHub
# The exact commit, as shallow as it can be. The token goes into the environment of these commands alone. From the end
# of this step on everything printed goes to `run.log` as well, without credentials.

# %%
step("1/10: Clone repository from GitHub")
if not repository:
    repository, commit = boot.make_sandbox()
root, commit, noted = boot.clone(repository, commit, secrets)
credentials, log = boot.open_log(secrets)

# %% [markdown]
# ## 2/10: Install dependencies (Hybrid Strategy)
# Hardware: the host's own torch and CUDA stay. Logic: everything else as `uv.lock` says, in a folder of its own.

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

shortcuts = {
    "training.epochs": epochs,
    "training.batch_size": batch_size,
    "training.learning_rate": learning_rate,
    "model.resume_from": resume_from,
}
overrides = {key: value for key, value in shortcuts.items() if value is not None}
chosen = load_experiment(experiment or find_module(module).small(root), overrides, module=module)
artifacts = root / chosen.artifacts
log.also_in(artifacts)
host = find_host(working, scratch)
print(configure_dvc(root, scratch, credentials))

# %% [markdown]
# ## 4/10: Configure Git with GitHub token
# What an earlier session left unfinished on the remotes is noted here, and settled before this run publishes. What it
# has trained of this experiment is gone on from.

# %%
step("4/10: Configure Git with GitHub token")
from lib.sync import recover
from lib.train.checkpoints import CheckpointUploader, fetch_checkpoint, find_checkpoint, hold_run

print(configure_git(root, credentials))
unfinished = recover(root, credentials)
print(f"Unfinished publications of other runs: {unfinished}")
hold = hold_run(root, chosen, credentials, noted)
log.on_error(lambda _: hold.release())
checkpoint = find_checkpoint(root, chosen, commit, credentials)
print(checkpoint.describe() if checkpoint else "No earlier session has left a checkpoint to go on from.")

# %% [markdown]
# ## 5/10: Configure WandB for experiment tracking

# %%
step("5/10: Configure WandB for experiment tracking")
from lib.results.report import RunFacts, branch_name
from lib.train.tracking import configure_tracking

branch = branch_name(chosen, started)
tracking = configure_tracking(chosen, credentials, working, branch.removeprefix("kaggle-train-"))
print(f"Dashboard: {tracking.address}")

# %% [markdown]
# ### Preflight
# Everything the run will need is tried now: a GPU by computing on it, a token by pushing with it. An error stops here.

# %% tags=["nbval-ignore-output"]
from lib.train.launch import prepare_library
from lib.train.preflight import Flight, preflight, show_preflight, stop_on_errors

prepare_library(scratch)
elapsed = time.monotonic() - begun
print("Preflight: what the run will need, tried now")
found = preflight(Flight(root, chosen, host, credentials, accelerator, elapsed))
print(show_preflight(found))
stop_on_errors(found)

# %% [markdown]
# ## 6/10: Pull dataset via DVC

# %%
step("6/10: Pull dataset via DVC")
from lib.data.dataset import pull_dataset

dataset = pull_dataset(root, chosen, scratch, credentials)
print(dataset.describe())
print(dataset.show_warnings())

# %% [markdown]
# ## 7/10: Display training configuration

# %%
step("7/10: Display training configuration")
from lib.kaggle.host import training_device
from lib.results.report import describe_run

device = training_device(host.gpus, multi_gpu=chosen.hardware.multi_gpu)
facts = RunFacts(root, branch, commit, credentials.redact(repository), started, device)
print(describe_run(facts, chosen, host))

# %% [markdown]
# ## 8/10: Download pretrained YOLO weights

# %%
step("8/10: Download pretrained YOLO weights")
from lib.train.launch import fetch_weights

hold.take()
checkpoint = find_checkpoint(root, chosen, commit, credentials)  # once more: nobody else moves it from now on
left = fetch_checkpoint(checkpoint, root, chosen, scratch, credentials) if checkpoint else None
start = fetch_weights(chosen, root, left)
tracking = tracking.going_on(start.run_path)
print(start.describe())

# %% [markdown]
# ## 9/10: Run training + Automatic model sync
# In processes of its own, one a GPU. Beside it checkpoints leave the machine, for the next session to go on from should
# this one end too early. From here on an error also sends a W&B alert.

# %% tags=["nbval-ignore-output"]
step("9/10: Run training + Automatic model sync")
from lib.train.launch import train
from lib.train.tracking import finish_tracking

print(f"Dashboard: {tracking.address}")


def on_error(error):
    if isinstance(error, Exception):
        keeper.wait()
    hold.release()
    finish_tracking(tracking, "failed", {}, credentials.redact(str(error)))


keeper = CheckpointUploader(root, chosen, commit, dataset.md5, credentials, hold)
log.on_error(on_error)
stop_at = begun + chosen.session.max_hours * 3600 if chosen.session.max_hours else None
with keeper:
    trained = train(chosen, dataset.data_file, start, root, scratch, device=device, tracking=tracking, stop_at=stop_at)

# %% [markdown]
# The best weights are measured on the validation and the test split.

# %% tags=["nbval-ignore-output"]
from lib.results.evaluate import evaluate

evaluated = evaluate(chosen, dataset, trained, device=device)

# %% [markdown]
# They are brought into the formats that the experiment names under `export`.

# %% tags=["nbval-ignore-output"]
from lib.train.export import export

exported = export(chosen, trained, root)

# %%
from lib.results.report import write_report
from lib.results.summary import show_metrics

write_report(facts, chosen, host, dataset, start, trained, evaluated, exported, tracking, steps)
show_metrics(evaluated)

# %% [markdown]
# Weights go to the DVC remote, everything else to a new branch: both, or neither. A training that failed half-way is
# published too, marked as failed, unless the experiment says to keep it here.

# %% tags=["nbval-ignore-output"]
from lib.results.report import publication
from lib.sync import sync_outputs

if trained.state == "failed" and chosen.session.on_failure == "keep":
    raise trained.error
keeper.wait()
published = sync_outputs(publication(facts, chosen, trained, evaluated, exported, hold), credentials)
results = {"branch": published.branch, "commit": published.commit, **evaluated.flat()}
hold.release()
finish_tracking(tracking, trained.state, results, "\n".join(filter(None, [published.branch, trained.reason])))
log.on_error(None)

# %% [markdown]
# ## 10/10: Cleanup (clear GPU cache)

# %%
step("10/10: Cleanup (clear GPU cache)")
from lib.train.launch import free_gpu_memory

print(free_gpu_memory())

# %% [markdown]
# ## What came out

# %% tags=["nbval-ignore-output"]
from lib.results.summary import show_pictures, show_summary

show_summary(facts, chosen, trained, evaluated, exported, tracking, steps, time.time())
show_pictures(facts, chosen)
if error := trained.error or evaluated.missing or exported.missing:
    raise error
log.close()
