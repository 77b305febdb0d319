"""Steps 0 and 1 of the notebook: verify the GPU and clone the repository, before any package is there.

`notebooks/train.py` imports this file; `render.py` puts its text into one collapsed cell, so that a rendered notebook
stays one file. It defines `Bootstrap` alone, and needs nothing but the standard library until the clone is there.

Guarantees: run.log holds every line from the first one on. The token is passed to git in its environment, and git sends
it to the repository's host only. No message contains a part of secrets.json. A clone of the same session is used again.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import unquote

if TYPE_CHECKING:
    from lib.log import RunLog
    from lib.remotes.credentials import Credentials


class Bootstrap:
    """The start of a run: its times and folders, and what is done until the cloned project takes over."""

    progress_seconds = 10.0
    """The time between two lines of git's progress."""
    pauses: tuple[float, ...] = (5.0, 20.0, 60.0)
    """The longest pauses in seconds before a host that limits requests, or is failing, is asked again."""
    kept = (
        r"GIT_CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|(KEY|VALUE)_\d+)",
        r"GIT_(AUTHOR|COMMITTER)_(NAME|EMAIL)",
        r"GIT_(ASKPASS|SSH|SSH_COMMAND|SSH_VARIANT|SSL_\w+|PROXY_\w+|HTTP_\w+|ALLOW_PROTOCOL)",
        r"GIT_(EXEC_PATH|TEMPLATE_DIR)",
        r"PYTHON(PATH|HOME)",
        r"PYTHON(DONTWRITEBYTECODE|PYCACHEPREFIX|UNBUFFERED|FAULTHANDLER)",
    )
    """The settings of Git and Python that pass to programs, as `KEPT` in lib/process.py, which has the reasons."""

    def __init__(self, module: str, working: str | Path, sandbox: str, *, kaggle: Path = Path("/kaggle")) -> None:
        """Create the working folder; if `working` is empty, Kaggle's, or a new one in the sandbox.

        `sandbox` is relative to the checkout around the current folder. `kaggle` exists on Kaggle only.
        """
        self.started, self.begun = datetime.now(UTC), time.monotonic()
        self.steps: list[tuple[str, float]] = []
        """The title and start of every step, for run.json and the summary."""
        here = Path.cwd()
        self._project = next((path for path in (here, *here.parents) if (path / "render.py").is_file()), None)
        self._module, self._kaggle, self._on_kaggle = module, kaggle, (kaggle / "working").is_dir()
        self._sandbox = (self._project or here).joinpath(sandbox).resolve()
        run = self._sandbox / "runs" / f"{module}-{self.started:%Y%m%d-%H%M%S}"
        self.working = Path(working or (kaggle / "working" if self._on_kaggle else run)).resolve()
        self.scratch = kaggle / "tmp" / "kaggle-training" if self._on_kaggle else self.working / "scratch"
        self.working.mkdir(parents=True, exist_ok=True)
        self._log_is_open = False
        self._secrets: Path | None = None
        path = str(self.working)
        if "'" in path or unquote(path).partition("?")[0] != path:  # only after the last epoch it would fail
            self._stop(
                f"{path} has a ', a ? or an escape such as %20 in its name, and ultralytics finds no weights there.",
                "run from a folder with another name, or name one with the parameter working.",
            )

    def step(self, title: str) -> None:
        """Record the start of a step and print its title with the time since the run's start."""
        self.steps.append((title, time.time()))
        passed = int(time.time() - self.started.timestamp())
        self.say(f"\n[{passed // 3600:02d}:{passed // 60 % 60:02d}:{passed % 60:02d}] {title}")

    def say(self, line: str) -> None:
        """Print a line; until `open_log`, also append it to run.log."""
        print(line, flush=True)
        if not self._log_is_open:
            self._log(line)

    def verify_gpu(self, accelerator: str) -> None:
        """Print the GPUs of this machine; stop on Kaggle if one is needed and there is none, warn if it is another."""
        wanted = {"t4x2": ["T4", "T4"], "p100": ["P100"], "none": []}
        if accelerator not in wanted:
            self._stop(
                f"accelerator is {accelerator!r}; it may be {', '.join(wanted)}.",
                "correct the parameter and run again.",
            )
        query, gpus = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], []
        if shutil.which(query[0]):
            done = subprocess.run(query, env=self._environment(), capture_output=True, text=True)
            gpus = done.stdout.splitlines()
        self.say(f"GPUs: {', '.join(gpus) or 'none'}")
        if not self._on_kaggle:
            return
        if wanted[accelerator] and not gpus:
            self._stop(
                f"Rendered for {accelerator}, and there is no GPU.",
                "choose GPU T4 x2 in the notebook's settings, run again.",
            )
        if [word for name, word in zip(gpus, wanted[accelerator], strict=False) if word in name] != wanted[accelerator]:
            self.say(f"Warning: rendered for {accelerator}; training takes what is here.")

    def make_sandbox(self) -> tuple[str, str]:
        """Make the sandbox from the checkout around the current folder; return its repository and newest commit."""
        if self._on_kaggle or self._project is None:
            self._stop(
                "No repository is given.",
                "make this notebook with render.py, or set the parameter repository to a Git URL.",
            )
        command = [sys.executable, "-m", "lib", "sandbox", self._module, "--folder", str(self._sandbox), "--json"]
        made = subprocess.run(command, cwd=self._project, env=self._environment(), capture_output=True, text=True)
        if made.returncode:
            self._stop(made.stderr, "as it says above.")
        described = json.loads(made.stdout.splitlines()[-1])
        return described["repository"], described["commit"]

    def clone(self, repository: str, commit: str, secrets: str) -> tuple[Path, str]:
        """Clone one commit of `repository`, as shallow as possible, and make the clone the current folder.

        An empty `commit` is the newest of the default branch. Returns the clone's folder and the commit.
        """
        root = self.working / repository.rstrip("/").rpartition("/")[2].removesuffix(".git")
        # it would be in .git/config, run.log and run.json
        if re.match(r"https?://([^/]*|[^/@:]*:(?!\d*/).*)@", repository):
            self._stop(
                "The address of the repository contains a user name or a token.",
                "leave it out of the parameter repository; GITHUB_TOKEN belongs in secrets.json.",
            )
        self._secrets = self._find_secrets(secrets)
        environment = self._git_environment(repository)

        def git(*words: str) -> subprocess.CompletedProcess[str]:
            command = ["git", *words]
            return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)

        root.mkdir(exist_ok=True)
        git("init", "--quiet")  # keeps what an earlier run of the session left
        git("remote", "remove", "origin")
        git("remote", "add", "origin", repository)
        wanted = commit or "FETCH_HEAD"
        wrong = self._fetch(root, environment, "--depth=1", "origin", commit or "HEAD")
        if wrong:  # the host may not serve single commits, or its HEAD may name a branch that is not there
            wrong = self._fetch(root, environment, "origin")
            names = git("for-each-ref", "--format=%(refname:lstrip=3)", "refs/remotes/origin").stdout.split()
            usual = [name for name in ("main", "master") if name in names] or names
            if not commit and (usual != names or len(names) == 1):
                wanted = f"refs/remotes/origin/{usual[0]}"
                self.say(f"The repository's HEAD names no branch; taking {usual[0]}.")
        checked_out = git("checkout", "--quiet", "--detach", wanted)
        if wrong or checked_out.returncode:
            cause = wrong or checked_out.stderr
            remedy = "use a repository with SHA-1 object names: DVC cannot open another."
            if "mismatched algorithms" not in cause:
                remedy = (
                    "check the address, that internet is on in the notebook's settings, that the commit is pushed, "
                    "and, for a private repository, GITHUB_TOKEN in secrets.json."
                )
            self._stop(f"{repository} at {commit or 'its newest commit'} cannot be cloned:\n{cause}", remedy)
        commit = git("rev-parse", "HEAD").stdout.strip()
        os.chdir(root)
        sys.path.insert(0, str(root))
        self.say(f"{repository} at {commit} is in {root}")
        return root, commit

    def open_log(self, secrets: str) -> "tuple[Credentials, RunLog]":
        """Load the credentials; from now on run.log receives everything that is printed, without credentials."""
        from lib.errors import RunError
        from lib.log import RunLog
        from lib.process import clean_environment
        from lib.remotes.credentials import load_credentials

        try:
            clean_environment()
            credentials = load_credentials(str(self._secrets or secrets))
        except RunError as error:  # run.log is not redacted yet; the error contains no value
            self._stop(error.what, error.remedy)
        log = RunLog(self.working / "run.log", credentials.redact)
        self._log_is_open = True
        return credentials, log

    def _log(self, text: str) -> None:
        file = self.working / "run.log"
        try:
            with file.open("a", encoding="utf-8") as opened:
                opened.write(f"{text}\n")
        except OSError as error:
            remedy = "free some space, or name another folder with the parameter working."
            raise SystemExit(f"{text}\n{file} cannot be written: {error.strerror}.\nWhat to do: {remedy}") from None

    def _stop(self, what: str, remedy: str) -> NoReturn:
        message = f"{what}\nWhat to do: {remedy}"
        self._log(message)
        raise SystemExit(message)

    def _find_secrets(self, secrets: str) -> Path | None:
        """Return the run's secrets.json, the first of those attached unless it is named; say so if there are more."""
        inputs = self._kaggle / "input"
        mounts = ("secrets.json", "*/secrets.json", "datasets/*/*/secrets.json")  # as in lib/remotes/credentials.py
        found = [file for mount in mounts for file in sorted(inputs.glob(mount))]
        if secrets:
            found = [Path(secrets).absolute()]  # the clone becomes the current folder
        if found[1:]:
            others = ", ".join(map(str, found[1:]))
            self.say(f"Using {found[0]}, not {others}; the parameter secrets can name another one.")
        return found[0] if found else None

    def _environment(self) -> dict[str, str]:
        """Return what a program gets of this process's environment; the rule is that of lib/process.py."""
        kept, decided = re.compile("|".join(self.kept)), ("GIT_", "PYTHON")
        passed = {name for name in os.environ if not name.startswith(decided) or kept.fullmatch(name)}
        return {name: os.environ[name] for name in passed} | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"}

    def _git_environment(self, repository: str) -> dict[str, str]:
        """Return the environment of git; it contains the token if there is one and `repository` is an http(s) URL."""
        file, token = self._secrets, os.environ.get("GITHUB_TOKEN", "")
        if file is not None:
            try:
                token = json.loads(file.read_text(encoding="utf-8-sig")).get("GITHUB_TOKEN", token)
                token = token if isinstance(token, str) else ""  # what is wrong with it is said when all are loaded
            except (OSError, ValueError, AttributeError) as error:  # its text may contain the file's
                kind = type(error).__name__
                self._stop(f"{file} cannot be read as a JSON object ({kind}).", "correct it, or the parameter secrets.")
        environment = self._environment()
        # stop a transfer that stays below so many bytes a second for so many seconds
        environment |= {"GIT_HTTP_LOW_SPEED_LIMIT": "1000", "GIT_HTTP_LOW_SPEED_TIME": "120"}
        if token and repository.startswith("http"):
            # git sends a helper's answer to this host only; a header would follow a redirect
            helper = '!f() { test "$1" = get && printf "username=x-access-token\\npassword=%s\\n" "$GIT_TOKEN"; }; f'
            key = f"credential.{'/'.join(repository.split('/')[:3])}.helper"
            count = environment.get("GIT_CONFIG_COUNT", "")
            first = int(count) if count.isdecimal() else 0  # the machine's own settings stay
            # first an empty helper, which disables the machine's own: one of them might store the token
            for number, (name, value) in enumerate((("credential.helper", ""), (key, helper)), first):
                environment |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
            environment |= {"GIT_CONFIG_COUNT": str(first + 2), "GIT_TOKEN": token}
        return environment

    def _fetch(self, root: Path, environment: dict[str, str], *words: str, tried: int = 0) -> str:
        """Fetch, printing the progress from time to time; return what went wrong, or an empty text."""
        command, messages, due = ["git", "fetch", "--progress", *words], [], time.monotonic() + self.progress_seconds
        with subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr or ():  # git rewrites its line; read as text, each version is a line
                if "% (" not in line:
                    messages.append(line)
                elif time.monotonic() > due:
                    due = time.monotonic() + self.progress_seconds
                    self.say(line.rstrip())
        wrong = "".join(messages) or f"git ended with status {process.returncode}"
        is_limit = any(word in wrong for word in ("rate limit", "returned error: 429", "returned error: 5"))
        if process.returncode and is_limit and tried < len(self.pauses):
            self.say(f"{wrong.strip().splitlines()[-1]}: asking again in up to {self.pauses[tried]:.0f} s …")
            time.sleep(random.uniform(self.pauses[tried] / 2, self.pauses[tried]))
            return self._fetch(root, environment, *words, tried=tried + 1)
        return wrong if process.returncode else ""
