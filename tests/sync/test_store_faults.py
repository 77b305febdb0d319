"""Break every call and every request of a publication over Drive and S3; see `faults.py` and `store_faults.py`.

Operations are the calls that `test_sync_faults.py` breaks over a folder: git commands, methods of the store, DVC's
work, local writes. Requests are below them: each HTTP request that reaches the store, also the pieces of an upload,
which the clients repeat by themselves. The checks after each fault are the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache, partial

import pytest
from conftest import Stores
from fault_sweeps import Sweeps, assert_no_findings, gather, in_memory, sweep
from faults import DIES, LIES, LOST, ON, ONCE, Call, DvcRemote, Kind, creates_a_branch, is_deletion
from scenarios import (
    ALONE,
    DEAD,
    INTERRUPTED,
    RECOVERY,
    RECOVERY_OF_A_CHECKPOINT,
    SESSION,
    STRANGER,
    TAKING_OVER,
    Scenario,
    refused,
)
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
    drive_remote,
    s3_remote,
)
from switches import Switch, declares_nothing, deletes_every_copy, does_not_verify, leaves_parts

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
    *rows(["s3"], ALONE, at_the_store(ON), LIES),
    *rows(BOTH, ALONE, at_the_store(LOST)),
    *rows(BOTH, refused(ALONE), ONCE, LOST),
    *rows(BOTH, refused(STRANGER), at_the_store(ONCE)),
    *rows(BOTH, DEAD, *map(at_the_store, (ON, LOST, DIES))),
    *rows(BOTH, RECOVERY, *map(at_the_store, (ONCE, ON, LOST))),
    *rows(BOTH, RECOVERY_OF_A_CHECKPOINT, *map(at_the_store, (ONCE, LOST))),
    *rows(BOTH, SESSION, *map(at_the_store, (ONCE, LOST, DIES))),
    *rows(BOTH, TAKING_OVER, at_the_store(ONCE)),
]
REQUESTS = [
    *rows(BOTH, ALONE, CUT_MIDWAY, BUSY_ON, NO_ANSWER, NO_ANSWERS, DIES_AFTER_A_REQUEST),
    *rows(["drive"], ALONE, DENIED_ON_DRIVE, BUSY),
    *rows(["s3"], ALONE, DENIED_ON_S3, CUT),
    *rows(BOTH, refused(ALONE), NO_ANSWER, CUT_ON),
    *rows(BOTH, RECOVERY, NO_ANSWER),
    *rows(BOTH, INTERRUPTED, NO_ANSWER, DIES_AFTER_A_REQUEST),
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


def sends_an_object(call: Call) -> bool:
    """Return whether the request contains a piece of a model."""
    return call.name.startswith("PUT") and "kaggle-training" not in call.words[0]


RULES: list[tuple[Switch, str, Scenario, Kind]] = [
    (declares_nothing, "drive", ALONE, replace(DIES, applies=creates_a_branch)),
    (deletes_every_copy, "drive", refused(STRANGER), replace(ONCE, applies=is_deletion)),
    (deletes_every_copy, "s3", refused(STRANGER), replace(ONCE, applies=is_deletion)),
    (does_not_verify, "s3", ALONE, LIES),
    (leaves_parts, "s3", ALONE, replace(DIES_AFTER_A_REQUEST, applies=sends_an_object)),
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
