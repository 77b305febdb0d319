"""Define `run.json`, the record in a run's ref: who holds the run, and which copies it may have stored.

`stop.json`, in the ref by which a person stops the run, is defined here as well.

Guarantees: a record that this version cannot read is None, never guessed, and must not be touched.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.remotes.repository import StoredObject

PROTOCOL = 2
LEASE = 600.0  # seconds without an answer after which a run may be taken over
LONGEST_NAME = 100  # bytes: it is a part of file names, which many file systems limit to 255 bytes
RUNS, ASKS, STOPS = "refs/runs/", "refs/asks/", "refs/stops/"


class DeclaredCopy(StoredObject):
    """A copy of an object that may exist: it was declared before it was stored."""

    identity: str
    store: str


class RunRecord(BaseModel):
    """The content of `run.json`; docs/sync-protocol.md explains its fields."""

    model_config = ConfigDict(frozen=True)

    protocol: int = PROTOCOL
    name: str
    repository: str
    session: str
    lease: float = LEASE
    publishing: tuple[DeclaredCopy, ...] = ()
    undo: tuple[DeclaredCopy, ...] = ()
    nonce: str = ""
    """Makes every written record a different commit: the ref moves, and two writers never make the same commit."""

    def but(self, **values: object) -> RunRecord:
        """Return the record with other values."""
        return self.model_copy(update=values)

    @property
    def declared(self) -> tuple[DeclaredCopy, ...]:
        """Return every copy that the record names."""
        return (*self.undo, *self.publishing)

    def to_json(self) -> str:
        """Return the record as JSON text with a new nonce, as stored in the ref's commit."""
        return self.but(nonce=secrets.token_hex(4)).model_dump_json(indent=1) + "\n"


def read_run(text: str) -> RunRecord | None:
    """Read a run's record; return None for another version's, and for text that is not a record."""
    try:
        record = RunRecord.model_validate_json(text)
    except ValidationError:
        return None
    return record if record.protocol == PROTOCOL else None


class Stop(BaseModel):
    """The content of `stop.json`: what a person wants of a run, and since when."""

    action: Literal["publish", "discard"] = "publish"
    asked: datetime = Field(default_factory=lambda: datetime.now(UTC))


def read_stop(text: str) -> Stop:
    """Read a wish to stop; text that is not one counts as the wish to publish, by which nothing is lost."""
    try:
        return Stop.model_validate_json(text)
    except ValidationError:
        return Stop()


def short_name(name: str) -> str:
    """Return a name without slashes, short enough for a ref and for a part of a file's name."""
    plain = name.replace("/", "-")
    if len(plain.encode()) <= LONGEST_NAME:
        return plain
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{plain.encode()[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"
