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

import faults as f
import pytest
import scenarios as s
import store_faults
import switches
from conftest import Stores
from fault_sweeps import Sweeps, assert_no_findings, gather, in_memory, sweep

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

tmp_path = pytest.fixture(in_memory)
sweeps = pytest.fixture(scope="session")(gather)

Place = Callable[[Stores], contextlib.AbstractContextManager[f.DvcRemote]]
Row = tuple[str, s.Scenario, f.Kind]
PLACES: dict[str, Place] = {
    "drive": store_faults.drive_remote,
    "s3": store_faults.s3_remote,
    "s3 with versions": partial(store_faults.s3_remote, versions=True),
}


@cache
def at_the_store(kind: f.Kind) -> f.Kind:
    """Return the kind of fault limited to calls of the store."""
    return replace(kind, name=f"{kind.name}, at the store", applies=lambda call: call.boundary == "store")


def rows(places: Sequence[str], scenario: s.Scenario, *kinds: f.Kind) -> list[Row]:
    """Return one row for each store and kind of fault."""
    return [(place, scenario, kind) for place in places for kind in kinds]


BOTH = ("drive", "s3")
OPERATIONS = [
    *rows(BOTH, s.ALONE, f.ONCE),
    *rows(["drive"], s.ALONE, f.ON, f.LOST),
    *rows(["s3"], s.ALONE, at_the_store(f.ON), f.LIES),
    *rows(BOTH, s.ALONE, at_the_store(f.LOST)),
    *rows(BOTH, s.refused(s.ALONE), f.ONCE, f.LOST),
    *rows(BOTH, s.refused(s.STRANGER), at_the_store(f.ONCE)),
    *rows(BOTH, s.DEAD, *map(at_the_store, (f.ON, f.LOST, f.DIES))),
    *rows(BOTH, s.RECOVERY, *map(at_the_store, (f.ONCE, f.ON, f.LOST))),
    *rows(BOTH, s.RECOVERY_OF_A_CHECKPOINT, *map(at_the_store, (f.ONCE, f.LOST))),
    *rows(BOTH, s.SESSION, *map(at_the_store, (f.ONCE, f.LOST, f.DIES))),
    *rows(BOTH, s.TAKING_OVER, at_the_store(f.ONCE)),
]
REQUESTS = [
    *rows(
        BOTH,
        s.ALONE,
        store_faults.CUT_MIDWAY,
        store_faults.BUSY_ON,
        store_faults.NO_ANSWER,
        store_faults.NO_ANSWERS,
        store_faults.DIES_AFTER_A_REQUEST,
    ),
    *rows(["drive"], s.ALONE, store_faults.DENIED_ON_DRIVE, store_faults.BUSY),
    *rows(["s3"], s.ALONE, store_faults.DENIED_ON_S3, store_faults.CUT),
    *rows(BOTH, s.refused(s.ALONE), store_faults.NO_ANSWER, store_faults.CUT_ON),
    *rows(BOTH, s.RECOVERY, store_faults.NO_ANSWER),
    *rows(BOTH, s.INTERRUPTED, store_faults.NO_ANSWER, store_faults.DIES_AFTER_A_REQUEST),
    *rows(["drive"], s.RECOVERY, store_faults.DENIED_ON_DRIVE),
    *rows(["s3"], s.RECOVERY, store_faults.DENIED_ON_S3),
    *rows(["s3 with versions"], s.ALONE, store_faults.NO_ANSWER, store_faults.DIES_BEFORE_A_REQUEST),
]
QUICK = {
    *rows(["drive"], s.ALONE, store_faults.NO_ANSWER, store_faults.DENIED_ON_DRIVE, store_faults.DIES_AFTER_A_REQUEST),
    *rows(BOTH, s.ALONE, at_the_store(f.LOST)),
}
"""The most telling faults: done but not answered, s.refused, or the last act of the process. All others are slow, since
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
    stores: Stores, sweeps: Sweeps, place: Place, scenario: s.Scenario, kind: f.Kind
) -> None:
    """The operation fails once, from then on, or happens and loses its answer."""
    with place(stores) as remote:
        assert_no_findings(stores, scenario, kind, sweeps, remote=remote)


@each(REQUESTS)
def test_a_fault_at_any_request_to_a_store_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, place: Place, scenario: s.Scenario, kind: f.Kind
) -> None:
    """The connection is cut, the request s.refused, or its answer lost: once, from then on, or as the process dies."""
    with place(stores) as remote:
        assert_no_findings(stores, scenario, kind, sweeps, remote=remote)


RULES: list[tuple[switches.Switch, str, s.Scenario, f.Kind]] = [
    (switches.declares_nothing, "drive", s.ALONE, replace(f.DIES, applies=f.creates_a_branch)),
    (switches.deletes_every_copy, "drive", s.refused(s.STRANGER), replace(f.ONCE, applies=f.is_deletion)),
    (switches.deletes_every_copy, "s3", s.refused(s.STRANGER), replace(f.ONCE, applies=f.is_deletion)),
    (switches.does_not_verify, "s3", s.ALONE, f.LIES),
]


@pytest.mark.parametrize(
    ("switch", "place", "scenario", "kind"), RULES, ids=[f"{switch.__name__}-{place}" for switch, place, *_ in RULES]
)
def test_a_fault_sweep_over_a_store_finds_a_transaction_that(
    stores: Stores, switch: switches.Switch, place: str, scenario: s.Scenario, kind: f.Kind
) -> None:
    """With one rule switched off, the sweep finds a broken promise."""
    sweeps = Sweeps()
    with PLACES[place](stores) as remote:
        sweep(stores, scenario, kind, sweeps, until_found=True, switch=switch, remote=remote)
    assert sweeps.findings
