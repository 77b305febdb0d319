"""All services of a whole run on loopback: a Google Drive, a private Git repository with tokens, and optionally W&B.

The clients are the real ones; only the built-in addresses of Google's and W&B's clients are replaced. The services
contain a sandbox: its repository is on the Git host, its DVC remote on the Drive, which is written back at the end. The
credentials are new each time, so that a leaked one shows from which run it leaked.

    with EmulatedServices(folder, sandbox) as services:
        notebook = bake(..., services.parameters)
        subprocess.run([...], env=services.environment())
        ...
        assert not leaks(services.canaries())
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import drive_emulator
from drive_emulator import DriveEmulator
from git_host_emulator import GitHost
from loopback import Answer
from wandb_emulator import WandbEmulator

from lib.remotes.credentials import NAMES, write_private
from lib.sandbox.make import Sandbox, _commit

REPOSITORY = "octocat/kaggle-training"

# First on PYTHONPATH, so that it applies to the kernel and every Python subprocess. Modules are changed when they are
# imported: importing them here would load packages into a process that has not installed them yet.
SITECUSTOMIZE = """
import importlib.util
import os
import sys


def name_token_uri(module):
    module.TOKEN_URI = "{drive}/token"


def serve_discovery(module):
    exec({discovery!r}, {{}})


CHANGES = {{"lib.remotes.credentials": name_token_uri, "googleapiclient.discovery_cache": serve_discovery}}


class Changed:
    def find_spec(self, name, path=None, target=None):
        change = CHANGES.pop(name, None)
        spec = importlib.util.find_spec(name) if change else None
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                change(module)

            spec.loader.exec_module = exec_module
        return spec


def note(event, given):
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
        with open(NOTES, "a") as file:
            file.write(repr(given[:2]) + "\\n")


sys.meta_path.insert(0, Changed())
NOTES = os.environ.get("{notes}")
if NOTES:
    sys.addaudithook(note)
"""
NOTES = "EMULATED_SERVICES_NOTES"
"""The variable that names a file: the kernel writes there the program and arguments of every subprocess."""


class _Handler(drive_emulator._Handler):
    """One connection of a client, for an OAuth client with another secret; records every issued token in `given`."""

    client_secret: str
    given: list[str]

    def _give_token(self, form: Mapping[str, str]) -> Answer:
        known = form.get("client_secret") == self.client_secret
        given = drive_emulator.CANARIES["client_secret"] if known else "another one"
        return super()._give_token({**form, "client_secret": given})

    def _new_token(self, token: str) -> dict[str, object]:
        self.given.append(token)
        return super()._new_token(token)


class EmulatedServices:
    """The services of one session, which serve while it is entered.

    `folder` is for files that must not be in a run's working folder: `secrets.json`, and the files by which the kernel
    finds the services. `wandb` adds a W&B that accepts the session's key; without it curves are recorded offline.
    """

    def __init__(self, folder: Path, sandbox: Sandbox | None = None, *, wandb: bool = False) -> None:
        self.folder = folder
        self.secrets_file = folder / "secrets.json"
        self.drive = DriveEmulator()
        self.host = GitHost(folder / "git-host")
        self.wandb = WandbEmulator() if wandb else None
        self.values: dict[str, Any] = {
            "GDRIVE_USER_CREDENTIALS": {
                **drive_emulator.CANARIES,
                "access_token": f"ya29.{secrets.token_urlsafe(60)}",
                "refresh_token": f"1//0{secrets.token_urlsafe(60)}",  # its slashes are quoted in requests
                "client_secret": f"GOCSPX-{secrets.token_urlsafe(21)}",
            },
            "GITHUB_TOKEN": f"ghp_{secrets.token_hex(18)}",
        }
        """The content of `secrets.json`; `write_secrets` writes it again."""
        if self.wandb is not None:
            self.values["WANDB_API_KEY"] = secrets.token_hex(20)
            self.wandb.keys = {self.values["WANDB_API_KEY"]}
        self.parameters: dict[str, str] = {}
        """The notebook's parameters: `repository`, `commit` and `secrets`."""
        self._sandbox = sandbox
        self._stack = contextlib.ExitStack()
        self._given: list[str] = []
        client_secret = self.values["GDRIVE_USER_CREDENTIALS"]["client_secret"]
        own = {"service": self.drive, "client_secret": client_secret, "given": self._given}
        self.drive._server.RequestHandlerClass = type("Handler", (_Handler,), own)
        self.restore()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for service in (self.drive, self.host, self.wandb):
                if service is not None:
                    stack.enter_context(service)
            self.write_secrets()
            site = self.folder / "site"
            site.mkdir(parents=True, exist_ok=True)
            text = SITECUSTOMIZE.format(
                drive=self.drive.url,
                discovery=drive_emulator.SITECUSTOMIZE.format(url=self.drive.url),
                notes=NOTES,
            )
            (site / "sitecustomize.py").write_text(text, encoding="utf-8")
            if self._sandbox is not None:
                self.adopt(self._sandbox)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            if self._sandbox is not None:
                self.store(self._sandbox.remote)

    # ── content ────────────────────────────────────────────────────────────────────────────────────────────────────

    def adopt(self, sandbox: Sandbox) -> dict[str, str]:
        """Copy a sandbox's repository and dataset to the services; return the notebook's parameters for them."""
        self._sandbox = sandbox
        for file in sorted(path for path in sandbox.remote.rglob("*") if path.is_file()):
            self.put(file.relative_to(sandbox.remote).as_posix(), file.read_bytes())
        seed = sandbox.origin.parent / "seed"
        drive_emulator.name_remote(seed, self.drive)
        commit = _commit(seed)
        address = self.host.add_repository(REPOSITORY, sandbox.origin)
        self.parameters = {"repository": address, "commit": commit, "secrets": str(self.secrets_file)}
        return self.parameters

    def put(self, path: str, data: bytes) -> None:
        """Store a file on the Drive, in its root folder or below."""
        self.drive.put(path, data, folder=None if "/" in path else self.drive.root_id)

    def store(self, remote: Path) -> None:
        """Copy the Drive's content to a folder, the oldest of twins, so that a later session finds it there."""
        files = {remote / path: copies[0][1] for path, copies in self.drive.files().items()}
        for path in [path for path in remote.rglob("*") if path.is_file() and path not in files]:
            path.unlink()
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    # ── credentials ────────────────────────────────────────────────────────────────────────────────────────────────

    def restore(self) -> None:
        """Accept only the user of `values`; delete all rules, faults and limits, and restore files from the trash."""
        self.values.pop("GDRIVE_SERVICE_ACCOUNT", None)
        drive = self.values["GDRIVE_USER_CREDENTIALS"]
        with self.drive._lock:
            self.drive._access = {drive["access_token"]}
            self.drive._refresh = {drive["refresh_token"]}
            self.drive.capacity = None
            self.drive.clear_faults()
            for item in self.drive._items.values():
                item.trashed = False
        self.host.tokens.clear()
        self.host.add_token(self.values["GITHUB_TOKEN"])
        self.host.protected = []
        self.host.clear_faults()
        if self.wandb is not None:
            self.wandb.keys = {self.values["WANDB_API_KEY"]}

    def use_service_account(self, **changed: str) -> dict[str, str]:
        """Replace the user's account in `secrets.json` by a new service account with these fields; return its key."""
        key = self.values["GDRIVE_SERVICE_ACCOUNT"] = self.drive.make_service_account() | changed
        self.write_secrets(GDRIVE_USER_CREDENTIALS=None, WANDB_API_KEY=None)
        return key

    def write_secrets(self, text: str | None = None, **changed: object) -> None:
        """Write `secrets.json` with changed values, or with a text; values of None are left out."""
        values = {name: value for name, value in {**self.values, **changed}.items() if value is not None}
        write_private(self.secrets_file, json.dumps(values, indent=2) if text is None else text)

    def canaries(self) -> dict[str, str]:
        """Return every secret value by its name: those of `secrets.json`, and the tokens that were issued since."""
        drive = self.values["GDRIVE_USER_CREDENTIALS"]
        found = {name: drive[name] for name in ("access_token", "refresh_token", "client_secret")}
        found |= {name: value for name, value in self.values.items() if isinstance(value, str)}
        if "GDRIVE_SERVICE_ACCOUNT" in self.values:
            found["private_key"] = self.values["GDRIVE_SERVICE_ACCOUNT"]["private_key"]
        return found | {f"token {number} given out": token for number, token in enumerate(self._given, 1)}

    # ── environment ────────────────────────────────────────────────────────────────────────────────────────────────

    def environment(self) -> dict[str, str]:
        """Return an environment in which programs use these services, and no other account."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        for name in NAMES:
            kept.pop(name, None)
        given = {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.folder / "site"), os.environ.get("PYTHONPATH")])),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        if self.wandb is not None:
            given["WANDB_BASE_URL"] = self.wandb.url
        return kept | given

    @contextlib.contextmanager
    def around_this_process(self) -> Iterator[None]:
        """Set that environment in this process, for the kernels that it starts."""
        before, given = dict(os.environ), self.environment()
        try:
            os.environ.clear()
            os.environ.update(given)
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    def __str__(self) -> str:
        drive = f"a Google Drive ({self.drive.url})"
        host = f"a Git host with a private repository ({self.host.address(REPOSITORY)})"
        return " and ".join([drive, host, *([f"W&B ({self.wandb.url})"] if self.wandb else [])])
