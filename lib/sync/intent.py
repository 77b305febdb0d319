"""Define the journal's record: what a publication changes on the DVC remote, and which copies were stored before.

Guarantees: a record that this version cannot read is reported as None, never guessed, and must not be touched.
Cannot: tell whether an owner on another machine is alive; only the renewals of its ref show that.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

PROTOCOL = 1
LEASE = 600.0  # seconds without a renewal after which any process may recover an intent
RENEWAL = LEASE / 5

State = Literal["uploading", "aborting", "cleaning", "running"]


@dataclass(frozen=True)
class StoredObject:
    """One object of a publication: its name on the DVC remote (hex MD5 of its content) and its size in bytes.

    `before` holds the identities stored under its path before this publication that no other publication may delete.
    """

    oid: str
    size: int
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Owner:
    """The process that is responsible for an intent."""

    clone: str
    """The clone's random name, the host name and the boot id: a clone copied to another machine differs."""
    process: str
    """Process id and start time: the system reuses process ids."""

    def is_dead_here(self, clone: str) -> bool:
        """Return whether the owner was a process of this clone and has ended; other machines are unknown."""
        pid = self.process.partition("-")[0]
        return self.clone == clone and process_name(int(pid)) != self.process


def process_name(pid: int) -> str:
    """Return a process's name, unique while the machine runs; a process that has ended has no start time."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = "ended"
        if not Path("/proc/self/stat").exists():  # not Linux: only the process id is known
            try:
                os.kill(pid, 0)
                started = "unknown"
            except OSError:
                pass
    return f"{pid}-{started}"


@dataclass(frozen=True)
class Intent:
    """The record of a publication, stored as `intent.json`.

    `nonce` makes every written record a different commit: observers see the ref move, and two writers never produce
    the same commit. `objects` are what the publication adds; `superseded` (hex MD5) are the objects that the replaced
    branches name and this publication does not. Before the commit `objects` may be deleted again; after it, in state
    `cleaning`, `superseded` are deleted.
    """

    id: str
    state: State
    branch: str
    base: str
    owner: Owner
    objects: tuple[StoredObject, ...]
    superseded: tuple[str, ...] = ()
    nonce: str = ""
    protocol: int = PROTOCOL

    def renewed(self) -> Intent:
        """Return the same intent with a new nonce, so that writing it makes another commit."""
        return replace(self, nonce=secrets.token_hex(4))

    def marked(self, owner: Owner) -> Intent:
        """Return the intent owned by the process that recovers it: `cleaning` if it is committed, else `aborting`."""
        state: State = "cleaning" if self.state == "cleaning" else "aborting"
        return replace(self, state=state, owner=owner, nonce=secrets.token_hex(4))

    def committed(self) -> Intent:
        """Return the intent in state `cleaning`, as the commit push leaves it if objects must be deleted afterwards."""
        return replace(self, state="cleaning", nonce=secrets.token_hex(4))

    @property
    def to_delete(self) -> tuple[StoredObject, ...]:
        """Return the objects that recovering this intent deletes, unless another intent, branch or tag names them."""
        if self.state == "cleaning":
            return tuple(StoredObject(oid, -1) for oid in self.superseded)
        return self.objects

    def may_delete(self, oid: str, identity: str) -> bool:
        """Return whether recovering this intent, committed or not, may delete the identity."""
        new = any(item.oid == oid and identity not in item.before for item in self.objects)
        return new or oid in self.superseded

    def names(self, oid: str) -> bool:
        """Return whether the object is one that this publication adds."""
        return any(item.oid == oid for item in self.objects)

    def is_deleting(self, oid: str) -> bool:
        """Return whether a process that recovers this intent may be about to delete the object."""
        return self.state != "uploading" and any(item.oid == oid for item in self.to_delete)

    def to_json(self) -> str:
        """Return the record as JSON text, as stored in the ref's commit."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Run(Intent):
    """The record of a whole run, in state `running`; `branch` is the run's name.

    A run that has not been renewed for `lease` seconds may be taken over.
    """

    lease: float = LEASE


def clone_name(file: Path) -> str:
    """Return the name of the clone that keeps `file`; valid on this machine until its next boot."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(8), encoding="utf-8")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:  # not Linux
        boot = "unknown"
    return f"{file.read_text(encoding='utf-8')}@{socket.gethostname()}/{boot}"


def new_intent_id() -> str:
    """Return a random id that no other publication has."""
    return secrets.token_hex(8)


def read_run(text: str) -> Run | None:
    """Read a run's record; return None for an unknown protocol version or for text that is not a record."""
    try:
        values: dict[str, Any] = json.loads(text)
        lease = float(values.pop("lease"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    intent = read_intent(json.dumps(values))
    return Run(**vars(intent), lease=lease) if intent else None


def read_intent(text: str) -> Intent | None:
    """Read an intent's record; return None for an unknown protocol version or for text that is not a record.

    An intent without a readable record is never touched: its owner may be a live process of a newer version.
    """
    try:
        values: dict[str, Any] = json.loads(text)
        if values.pop("protocol") != PROTOCOL:
            return None
        objects = tuple(
            StoredObject(item["oid"], item["size"], tuple(item["before"])) for item in values.pop("objects")
        )
        superseded = tuple(values.pop("superseded"))
        return Intent(objects=objects, superseded=superseded, owner=Owner(**values.pop("owner")), **values)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
