"""Break every call and every request of a publication over Drive and S3; see `faults.py` and `store_faults.py`.

Operations are the calls that `test_sync_faults.py` breaks over a folder: git commands, methods of the store, DVC's
work, local writes. Requests are below them: each HTTP request that reaches the store, also the pieces of an upload,
which the clients repeat by themselves. The checks after each fault are the same.
"""

from __future__ import annotations

import contextlib
import http.client as http_client
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
from conftest import Stores
from fault_sweeps import Sweeps, assert_no_findings, gather, in_memory, sweep
from faults import (
    ALONE,
    DEAD,
    DIES,
    LIES,
    LOST,
    MOVING,
    ON,
    ONCE,
    RECOVERY,
    STRANGER,
    Call,
    DvcRemote,
    Kind,
    Scenario,
    refused,
)
from lib.sync.intent import StoredObject
from store_faults import (
    BUSY,
    BUSY_ON,
    CUT,
    CUT_MIDWAY,
    CUT_ON,
    DENIED_ON_DRIVE,
    DENIED_ON_S3,
    DIES_AFTER_A_REQUEST,
    DIES_BEFORE_A_REQUEST,
    NO_ANSWER,
    NO_ANSWERS,
    TWIN,
    drive_remote,
    s3_remote,
)
from switches import Switch, does_not_verify, ignores_identities

from lib.errors import SyncError
from lib.sync.remotes import Remotes
from lib.sync.stores import gdrive as drive_module
from lib.sync.stores.gdrive import DriveObjects
from lib.sync.stores.s3 import S3Objects

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

tmp_path = pytest.fixture(in_memory)
sweeps = pytest.fixture(scope="session")(gather)

Place = Callable[[Stores], contextlib.AbstractContextManager[DvcRemote]]
Row = tuple[str, Scenario, Kind]
PLACES: dict[str, Place] = {
    "drive": drive_remote,
    "s3": s3_remote,
    "s3 in one request": partial(s3_remote, parts=False),
    "s3 with versions": partial(s3_remote, versions=True),
}


@cache
def at_the_store(kind: Kind) -> Kind:
    """Return the kind of fault limited to calls of the store."""
    return replace(kind, name=f"{kind.name}, at the store", applies=lambda call: call.boundary == "store")


def rows(places: Sequence[str], scenario: Scenario, *kinds: Kind) -> list[Row]:
    """Return one row for each store and kind of fault."""
    return [(place, scenario, kind) for place in places for kind in kinds]


BOTH = ("drive", "s3")
OPERATIONS = [
    *rows(BOTH, ALONE, ONCE),
    *rows(["drive"], ALONE, ON, LOST),
    *rows(["s3"], ALONE, at_the_store(ON)),
    *rows(BOTH, ALONE, at_the_store(LOST)),
    *rows(BOTH, refused(ALONE), ONCE, LOST),
    *rows(BOTH, refused(STRANGER), at_the_store(ONCE)),
    *rows(BOTH, DEAD, *map(at_the_store, (ON, LOST, DIES))),
    *rows(BOTH, RECOVERY, *map(at_the_store, (ONCE, ON, LOST))),
    *rows(["drive"], TWIN, at_the_store(LOST)),
    *rows(BOTH, MOVING, *map(at_the_store, (ONCE, LOST))),
]
REQUESTS = [
    *rows(BOTH, ALONE, CUT_MIDWAY, BUSY_ON, NO_ANSWER, NO_ANSWERS, DIES_AFTER_A_REQUEST),
    *rows(["drive"], ALONE, DENIED_ON_DRIVE, BUSY),
    *rows(["s3"], ALONE, DENIED_ON_S3, CUT),
    *rows(BOTH, refused(ALONE), NO_ANSWER, CUT_ON),
    *rows(BOTH, RECOVERY, NO_ANSWER),
    *rows(["drive"], RECOVERY, DENIED_ON_DRIVE),
    *rows(["s3"], RECOVERY, DENIED_ON_S3),
    *rows(["s3 in one request"], ALONE, NO_ANSWER, DENIED_ON_S3),
    *rows(["s3 with versions"], ALONE, NO_ANSWER, DIES_BEFORE_A_REQUEST),
]
QUICK = {
    *rows(["drive"], ALONE, NO_ANSWER, DENIED_ON_DRIVE, DIES_AFTER_A_REQUEST),
    *rows(BOTH, ALONE, at_the_store(LOST)),
}
"""The most telling faults: done but not answered, refused, or the last act of the process. All others are slow, since
opening S3 takes a fifth of a second each time."""


def each(found: Iterable[Row]) -> pytest.MarkDecorator:
    """Parametrize a test with stores, scenarios and kinds of fault; all but the quick ones are marked slow."""
    return pytest.mark.parametrize(
        ("place", "scenario", "kind"),
        [
            pytest.param(
                PLACES[row[0]],
                *row[1:],
                id=f"{row[0]}-{row[1].name}-{row[2].name}",
                marks=() if row in QUICK else pytest.mark.slow,
            )
            for row in found
        ],
    )


@each(OPERATIONS)
def test_a_fault_at_any_operation_over_a_store_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, place: Place, scenario: Scenario, kind: Kind
) -> None:
    """The operation fails once, from then on, or happens and loses its answer."""
    with place(stores) as remote:
        assert_no_findings(stores, scenario, kind, sweeps, remote=remote)


@each(REQUESTS)
def test_a_fault_at_any_request_to_a_store_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, place: Place, scenario: Scenario, kind: Kind
) -> None:
    """The connection is cut, the request refused, or its answer lost: once, from then on, or as the process dies."""
    with place(stores) as remote:
        assert_no_findings(stores, scenario, kind, sweeps, remote=remote)


# ── with one rule switched off ────────────────────────────────────────────────────────────────────────────────────────


def treats_every_copy_as_its_own(patch: pytest.MonkeyPatch) -> None:
    """Delete an unrelated twin too."""
    find = Remotes._new_copies

    def find_all(remotes: Remotes, items: Sequence[StoredObject]) -> list[tuple[str, str]]:
        return find(remotes, [replace(item, before=()) for item in items])

    patch.setattr(Remotes, "_new_copies", find_all)


def restarts_interrupted_uploads(patch: pytest.MonkeyPatch) -> None:
    """Start a new session for an upload to Drive when an answer is lost."""
    upload = DriveObjects.upload

    def upload_twice(store: DriveObjects, *given: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(drive_module, "PAUSES", ())
            inner.setattr("httplib2.Http._conn_request", send_once)
            try:
                upload(store, *given)
            except SyncError:
                upload(store, *given)

    patch.setattr(DriveObjects, "upload", upload_twice)


def send_once(http: Any, connection: Any, address: str, method: str, body: Any, headers: Any) -> tuple[Any, bytes]:
    """Send a request as httplib2 does, but without its retry."""
    import httplib2

    if connection.sock is None:
        connection.connect()
    try:
        connection.request(method, address, body, headers)
        response = connection.getresponse()
        content = response.read()
    except (OSError, http_client.HTTPException):
        connection.close()
        raise
    return httplib2.Response(response), content


def leaves_parts(patch: pytest.MonkeyPatch) -> None:
    """Leave the parts of a dead run's upload on S3."""
    patch.setattr(S3Objects, "discard", lambda *_: None)


def leaves_its_test_write(patch: pytest.MonkeyPatch) -> None:
    """Leave the test write on the store after a failure."""
    unmark = S3Objects.unmark

    def unmark_unless_recovering(store: S3Objects, name: str) -> None:
        if sys._getframe(1).f_code.co_name != "recover":
            unmark(store, name)

    patch.setattr(S3Objects, "unmark", unmark_unless_recovering)


def sends_an_object(call: Call) -> bool:
    """Return whether the request contains a piece of a model."""
    return call.name.startswith("PUT") and "kaggle-training" not in call.words[0]


RULES: list[tuple[Switch, str, Scenario, Kind]] = [
    (does_not_verify, "drive", ALONE, LIES),
    (does_not_verify, "s3", ALONE, LIES),
    (ignores_identities, "drive", TWIN, at_the_store(ONCE)),
    (treats_every_copy_as_its_own, "drive", TWIN, at_the_store(ONCE)),
    (restarts_interrupted_uploads, "drive", ALONE, replace(NO_ANSWER, applies=sends_an_object)),
    (leaves_parts, "s3", ALONE, replace(DIES_AFTER_A_REQUEST, applies=sends_an_object)),
    (leaves_its_test_write, "s3", ALONE, DIES_AFTER_A_REQUEST),
]


@pytest.mark.parametrize(
    ("switch", "place", "scenario", "kind"), RULES, ids=[f"{switch.__name__}-{place}" for switch, place, *_ in RULES]
)
def test_a_fault_sweep_over_a_store_finds_a_transaction_that(
    stores: Stores, switch: Switch, place: str, scenario: Scenario, kind: Kind
) -> None:
    """With one rule switched off, the sweep finds a broken promise."""
    sweeps = Sweeps()
    with PLACES[place](stores) as remote:
        sweep(stores, scenario, kind, sweeps, until_found=True, switch=switch, remote=remote)
    assert sweeps.findings
