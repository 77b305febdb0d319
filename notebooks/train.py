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
# account and no network. Everything to choose is in the next cell; `render.py` fills it in from an experiment.

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
# Before anything costs time. The collapsed cell holds the code of steps 0 and 1, `notebooks/bootstrap.py`.

# %% tags=["bootstrap"]
# a rendered notebook has the text of notebooks/bootstrap.py here
import sys
from pathlib import Path

folders = [folder / "notebooks" for folder in (Path.cwd(), *Path.cwd().parents)]
sys.path += [str(folder) for folder in folders if (folder / "bootstrap.py").is_file()][:1]
from bootstrap import Bootstrap

# %%
if "log" in globals():  # run again in the same session
    globals()["log"].close()
boot = Bootstrap(module, working, sandbox)
step = boot.step

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
root, commit = boot.clone(repository, commit, secrets)
credentials, log = boot.open_log(secrets)

# %% [markdown]
# ## 2/10: Install dependencies (Hybrid Strategy)
# Hardware: the host's own torch and CUDA stay. Logic: everything else as pinned in `uv.lock`, in a separate folder.

# %%
step("2/10: Install dependencies (Hybrid Strategy)")
from lib.kaggle.install import install

print(install(root, boot.scratch / "packages"))

# %% [markdown]
# ## 3/10: Configure DVC with Google Drive

# %%
step("3/10: Configure DVC with Google Drive")
from functools import partial

from lib.experiment.load import by_key, load_experiment
from lib.experiment.modules import find_module
from lib.kaggle.host import find_host
from lib.remotes.clone import configure_dvc, configure_git
from lib.results.messages import tell_end, tell_error
from lib.session import Session

shortcuts = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "resume_from": resume_from}
chosen = load_experiment(experiment or find_module(module).small(root), by_key(shortcuts), module=module)
session = Session(
    root, boot.working, boot.scratch, chosen, credentials, find_host(boot.working, boot.scratch), commit,
    credentials.redact(repository), accelerator, boot.started, boot.begun, boot.steps,
)  # fmt: skip
log.also_in(session.artifacts)
tell = partial(tell_error, session)  # to the addresses of NOTIFY_URLS, if there are any
log.on_error(tell)
print(configure_dvc(root, session.scratch, credentials))

# %% [markdown]
# ## 4/10: Configure Git with GitHub token
# The run of this experiment is taken; if another session holds it, that one is asked whether it lives. If an earlier
# session left a checkpoint, training resumes from it.

# %%
step("4/10: Configure Git with GitHub token")
from lib.train.checkpoints import CheckpointUploader, fetch_checkpoint, find_checkpoint, hold_run, recover_here

print(configure_git(root, credentials))
print(f"Runs under way: {recover_here(session)}")
hold = hold_run(session)
log.on_error(lambda _: hold.release(), tell)
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
# Meanwhile the processes of the training start, and wait for step 9.

# %% tags=["nbval-ignore-output"]
from lib.train.launch import start_workers
from lib.train.preflight import preflight, show_preflight, stop_on_errors

print("Preflight: checking everything that the run will need")
workers = start_workers(session)
log.on_error(lambda _: workers.close(), lambda _: hold.release(), tell)
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
# Each image of train and val is decoded and shrunk once, instead of in every epoch; the batches are the same.

# %% tags=["nbval-ignore-output"]
from lib.data.prepare import prepare_images

dataset = prepare_images(session, dataset)

# %% [markdown]
# ## 7/10: Display training configuration

# %%
step("7/10: Display training configuration")
from lib.results.estimate import show_estimate
from lib.results.report import describe_run

print(describe_run(session))
expected = show_estimate(root, credentials, chosen, accelerator) if session.host.on_kaggle else None

# %% [markdown]
# ## 8/10: Download pretrained YOLO weights

# %%
step("8/10: Download pretrained YOLO weights")
from lib.train.weights import fetch_weights

hold.take()
checkpoint = find_checkpoint(session)  # again: from now on no other session replaces it
start = fetch_weights(session, fetch_checkpoint(session, checkpoint) if checkpoint else None, dataset)
tracking = tracking.resumed(start.run_path)
print(start.describe())

# %% [markdown]
# ## 9/10: Run training + Automatic model sync
# One subprocess per GPU. Meanwhile checkpoints are uploaded: if this session ends early, the next one resumes from
# them. From here on, an error also sends a W&B alert. `python -m lib stop` ends the training after an epoch.

# %% tags=["nbval-ignore-output"]
step("9/10: Run training + Automatic model sync")
from lib.train.launch import train

print(f"Dashboard: {tracking.address}")
uploader = CheckpointUploader(session, dataset.md5, hold)
log.on_error(lambda _: workers.close(), lambda error: uploader.fail(error, tracking), tell)
with uploader:
    seconds = expected.epoch if expected else None  # of an epoch
    trained = train(
        session, dataset.training_file, start, tracking, expected=seconds, confirm=hold.confirm, workers=workers
    )
uploader.discard_if_asked()

# %% [markdown]
# The best weights are measured on the validation and the test split, and exported to the requested formats.

# %% tags=["nbval-ignore-output"]
from lib.results.evaluate import evaluate
from lib.train.export import export

evaluated = evaluate(session, dataset, trained)
exported = export(session, trained)

# %%
from lib.results.report import Results, publication, show_images, show_metrics, show_summary, write_report

results = Results(dataset, start, tracking, trained, evaluated, exported)
write_report(session, results)
show_metrics(evaluated)

# %% [markdown]
# Weights go to the DVC remote, everything else to a new branch: both, or neither. A training that failed half-way is
# published too, marked as failed, unless `session.on_failure` is `keep`.

# %% tags=["nbval-ignore-output"]
from lib.sync import sync_outputs
from lib.train.tracking import finish_tracking

if trained.state == "failed" and session.experiment.session.on_failure == "keep":
    raise trained.error
uploader.wait()
uploader.discard_if_asked()
published = sync_outputs(publication(session, results, hold), credentials)
hold.release()
summary = {"branch": published.branch, "commit": published.commit, **evaluated.metrics.flat()}
finish_tracking(tracking, trained.state, summary, f"{published.branch}\n{trained.reason}".rstrip())
tell_end(session, results, published.branch)
log.on_error()

# %% [markdown]
# ## 10/10: Cleanup (clear GPU cache)

# %%
step("10/10: Cleanup (clear GPU cache)")
from lib.process import remove_now
from lib.train.launch import free_gpu_memory

print(free_gpu_memory())
remove_now()  # the credentials' file; after an error it stays until the kernel ends, so that a step can be repeated

# %% [markdown]
# ## Results

# %% tags=["nbval-ignore-output"]
show_summary(session, results)
show_images(session)
if error := trained.error or evaluated.missing or exported.missing:
    raise error
log.close()
