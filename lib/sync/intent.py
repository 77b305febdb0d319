"""The journal's one record: what a publication is about to do to the DVC remote, and what stood there before."""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

PROTOCOL = 1
LEASE = 600.0  # seconds without a renewal after which an intent may be settled by anyone
RENEWAL = LEASE / 5

State = Literal["uploading", "aborting", "cleaning", "running"]


@dataclass(frozen=True)
class StoredObject:
    """One object of a publication: its name on the DVC remote (the MD5 of its content, hex) and its size in bytes.

    `before` holds the identities that stood under its path before this publication and that nobody else may delete.
    """

    oid: str
    size: int
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Owner:
    """The process that answers for an intent."""

    clone: str
    """The clone's own random name, with the machine and its boot: a copied clone is another."""
    process: str
    """Process number and start time: a number alone is given out again."""

    def is_dead_here(self, clone: str) -> bool:
        """Whether it was a process of this clone and has ended; of other machines nothing is known."""
        pid = self.process.partition("-")[0]
        return self.clone == clone and process_name(int(pid)) != self.process


def process_name(pid: int) -> str:
    """Name a process for as long as the machine runs; an ended one has no start time."""
    try:
        started = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = "ended"
        if not Path("/proc/self/stat").exists():  # no Linux: the number is all there is
            try:
                os.kill(pid, 0)
                started = "unknown"
            except OSError:
                pass
    return f"{pid}-{started}"


@dataclass(frozen=True)
class Intent:
    """`intent.json`. `nonce` makes each writing another commit: observers see it move, and no two writers agree.

    `objects` are what the publication brings, `superseded` (MD5, hex) what only the branches name that it takes the
    place of. Until it is committed the first may be deleted again; from then on, `cleaning`, the second are.
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
        """Give the same intent as another record."""
        return replace(self, nonce=secrets.token_hex(4))

    def marked(self, owner: Owner) -> Intent:
        """Give the intent in the hands of who settles it: what is committed is cleaned up after, the rest undone."""
        state: State = "cleaning" if self.state == "cleaning" else "aborting"
        return replace(self, state=state, owner=owner, nonce=secrets.token_hex(4))

    def committed(self) -> Intent:
        """Give the intent as the commit push leaves it where there is something to clean up."""
        return replace(self, state="cleaning", nonce=secrets.token_hex(4))

    @property
    def doomed(self) -> tuple[StoredObject, ...]:
        """What settling this intent deletes, unless somebody else names it."""
        if self.state == "cleaning":
            return tuple(StoredObject(oid, -1) for oid in self.superseded)
        return self.objects

    def may_delete(self, oid: str, identity: str) -> bool:
        """Whether settling this intent, however it ends, may delete the identity."""
        new = any(item.oid == oid and identity not in item.before for item in self.objects)
        return new or oid in self.superseded

    def names(self, oid: str) -> bool:
        """Whether the object is one of its own."""
        return any(item.oid == oid for item in self.objects)

    def is_deleting(self, oid: str) -> bool:
        """Whether somebody may be about to delete the object for it."""
        return self.state != "uploading" and any(item.oid == oid for item in self.doomed)

    def to_json(self) -> str:
        """Give the record as it stands in the ref's commit."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Run(Intent):
    """The record of a run as a whole, state `running`; `branch` is its name.

    What has not been renewed for `lease` seconds may be taken over.
    """

    lease: float = LEASE


def clone_name(file: Path) -> str:
    """Name the clone that keeps `file`, on this machine and for as long as it runs."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(secrets.token_hex(8), encoding="utf-8")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:  # no Linux
        boot = "unknown"
    return f"{file.read_text(encoding='utf-8')}@{socket.gethostname()}/{boot}"


def new_intent_id() -> str:
    """Give a name that no other publication has."""
    return secrets.token_hex(8)


def read_run(text: str) -> Run | None:
    """Read a run's record; None where it is of a protocol this version does not know, or no record at all."""
    try:
        values: dict[str, Any] = json.loads(text)
        lease = float(values.pop("lease"))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    intent = read_intent(json.dumps(values))
    return Run(**vars(intent), lease=lease) if intent else None


def read_intent(text: str) -> Intent | None:
    """Read a record; None where it is of a protocol this version does not know, or no record at all.

    Such an intent is never touched: its owner may be a newer version that is alive.
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
