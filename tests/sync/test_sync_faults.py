"""Break every external call of a publication, a rollback and a recovery, with every kind of fault; see `faults.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import WEIGHTS, Stores
from fault_sweeps import Sweeps, World, assert_no_findings, gather, in_memory, prepare, sweep
from faults import (
    ALONE,
    BOUNDARY,
    CLEANING_UP,
    COLD,
    CONCURRENT,
    DEAD,
    FINISHING,
    HOLDING,
    KILLED_AFTER,
    KILLED_BEFORE,
    KILLED_MIDWAY,
    LATE,
    LIES,
    LOST,
    MEANWHILE,
    MOVING,
    ON,
    ONCE,
    PUBLISHED,
    RECOVERY,
    ROLLING_BACK,
    STRANGER,
    VERY_LATE,
    WANTED,
    Call,
    FolderRemote,
    Kind,
    Scenario,
    is_push,
    refused,
)
from switches import (
    Switch,
    adopts_nothing,
    does_not_listen,
    does_not_probe_again,
    does_not_verify,
    ignores_branches,
    ignores_identities,
    ignores_other_intents,
)

from lib.sync import lease as lease_module
from lib.sync.intent import StoredObject
from lib.sync.refs import Refs, RefUpdate
from lib.sync.remotes import EVERYTHING, Remotes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

Pairs = tuple[tuple[Scenario, tuple[Kind, ...]], ...]

# parts of slow sweeps that are worth their few seconds in each run
READING = replace(ONCE, name="fails once to read", applies=lambda call: call.words[1:2] == ("cat-file",))
LOSING = replace(LOST, name="loses its answer to a push", applies=is_push)
MIRRORING = replace(ONCE, name="fails once to mirror", applies=lambda call: call.words[1:2] in (("init",), ("config",)))

PUBLICATIONS: Pairs = (
    (COLD, (ONCE, ON, LOST, MIRRORING)),
    (ALONE, (ONCE, BOUNDARY)),
    (STRANGER, (ON, LOST)),
    (PUBLISHED, (ON,)),
    (DEAD, (ON, LOST)),
    (CONCURRENT, (ON, BOUNDARY, LOST)),
    (ROLLING_BACK, (ONCE, BOUNDARY, READING)),
    (FINISHING, (ONCE, LOST)),
    (MOVING, (LOSING,)),
    (HOLDING, (ONCE, ON, LOST)),
)
ROLLBACKS: Pairs = (
    (refused(ALONE), (ONCE, ON, BOUNDARY, LOST)),
    (refused(STRANGER), (ONCE,)),
    (refused(PUBLISHED), (ONCE,)),
    (refused(DEAD), (ONCE, LOST)),
    (refused(CONCURRENT), (ONCE, BOUNDARY)),
    (refused(ROLLING_BACK), (ONCE,)),
    (refused(FINISHING), (ONCE,)),
    (refused(MOVING), (ONCE, LOST)),
    (RECOVERY, (ONCE, ON, BOUNDARY, LOST)),
    (CLEANING_UP, (ONCE, ON, LOST)),
)
DELAYS: Pairs = tuple((scenario, (LATE, VERY_LATE)) for scenario in (ALONE, DEAD, CONCURRENT, MOVING, refused(ALONE)))
MEANWHILES: Pairs = tuple(
    (scenario, (MEANWHILE,))
    for scenario in (CONCURRENT, ROLLING_BACK, WANTED, refused(CONCURRENT), refused(ROLLING_BACK, whole=True))
)
KILLS: Pairs = (
    (COLD, (KILLED_BEFORE, KILLED_AFTER, KILLED_MIDWAY)),
    *(
        (scenario, (KILLED_AFTER,))
        for scenario in (STRANGER, DEAD, CONCURRENT, ROLLING_BACK, FINISHING, MOVING, HOLDING)
    ),
    *((refused(scenario), (KILLED_AFTER,)) for scenario in (ALONE, STRANGER, DEAD, CONCURRENT)),
    (RECOVERY, (KILLED_AFTER,)),
    (CLEANING_UP, (KILLED_AFTER,)),
)
QUICK = {(ALONE, ONCE), (refused(ALONE), ONCE), (ALONE, LATE), (ALONE, VERY_LATE), (ALONE, LIES),
         (ROLLING_BACK, READING), (COLD, MIRRORING), (MOVING, LOSING)}  # fmt: skip
"""The sweeps that fit into two minutes; all others are slow."""


tmp_path = pytest.fixture(in_memory)
sweeps = pytest.fixture(scope="session")(gather)


def each(pairs: Pairs) -> pytest.MarkDecorator:
    """Parametrize a test with every scenario and its kinds of fault; all but the quick ones are marked slow."""
    found = []
    for scenario, kinds in pairs:
        for kind in kinds:
            marks = () if (scenario, kind) in QUICK else (pytest.mark.slow,)
            found.append(pytest.param(scenario, kind, id=f"{scenario.name}-{kind.name}", marks=marks))
    return pytest.mark.parametrize(("scenario", "kind"), found)


@each(PUBLICATIONS)
def test_a_fault_at_any_call_of_a_publication_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """A call fails once, from then on, with all calls of its sort, or happens and loses its answer."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(ROLLBACKS)
def test_a_fault_at_any_call_of_a_rollback_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """The branch is refused, or the machine has died before its commit push; then a call of the rollback fails too."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(DELAYS)
def test_a_fault_that_delays_a_push_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """The client gives the push up, but it arrives: before the recovery, or after it."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(((ALONE, (LIES,)), (STRANGER, (LIES,))))
def test_a_fault_of_a_store_that_reports_success_and_stores_nothing_is_found_before_the_commit_push(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """An upload returns without an error and without an effect."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(MEANWHILES)
def test_a_peer_that_finishes_right_before_any_call_leaves_both_publications_complete(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """Another run of the same content ends its publication, or its rollback, between any two calls of this one."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(KILLS)
def test_a_fault_that_kills_the_process_at_any_call_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """SIGKILL right before each call, right after it, or in the middle of a write; its subprocesses die as well."""
    assert_no_findings(stores, scenario, kind, sweeps)


def test_worlds_that_a_retry_could_tell_apart_have_different_digests(stores: Stores) -> None:
    """A lock, half an upload or a changed file make a difference; a loose object, a time or a random name does not."""
    remote = FolderRemote(stores)
    prepare(stores, ALONE, remote)
    seen = {World(stores, ALONE, remote).digest()}
    for path in (
        "origin.git/refs/intents/x.lock", "clone/.git/index.lock", "clone/.git/objects/ab/tmp_obj_x", "storage/.x.tmp",
        "clone/.git/kaggle-sync/before-x.json", "clone/left.dvc",
    ):  # fmt: skip
        world = World(stores, ALONE, remote)
        file = stores.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("left behind")
        digest = world.digest()
        assert digest not in seen, path
        seen.add(digest)
    world, same = World(stores, ALONE, remote), World(stores, ALONE, remote).digest()
    loose = stores.clone / ".git/objects/ab" / ("0" * 38)
    loose.parent.mkdir(exist_ok=True)
    loose.write_text("one more")
    (stores.clone / WEIGHTS[0]).touch()
    assert world.digest() == same


# ── with one rule switched off ────────────────────────────────────────────────────────────────────────────────────────


def reads_branches_first(patch: pytest.MonkeyPatch) -> None:
    """Read the intents last: a publication that commits between the two reads is seen in neither."""
    enter, named = lease_module.Lease.__enter__, Refs.named_objects
    seen: dict[int, set[str]] = {}

    def read_early(lease: lease_module.Lease) -> lease_module.Lease:
        entered = enter(lease)
        if lease._record.state == "aborting":
            seen[id(lease._refs)] = named(lease._refs, *EVERYTHING)
        return entered

    def read_once(refs: Refs, *patterns: str) -> set[str]:
        return seen.pop(id(refs)) if id(refs) in seen else named(refs, *patterns)

    patch.setattr(lease_module.Lease, "__enter__", read_early)
    patch.setattr(Refs, "named_objects", read_once)


def deletes_its_intent_first(patch: pytest.MonkeyPatch) -> None:
    """Delete the intent before the objects."""
    recover = Remotes.recover

    def recover_then_delete(remotes: Remotes, seen: Any) -> bool:
        waiting: list[StoredObject] = []
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(Remotes, "_delete_new", lambda _remotes, to_delete, *_: waiting.extend(to_delete))
            done = recover(remotes, seen)
        for item in waiting:
            for identity in set(remotes.objects.look([item.oid]).get(item.oid, {})) - set(item.before):
                remotes.objects.delete(item.oid, identity)
        return done

    patch.setattr(Remotes, "recover", recover_then_delete)


def pushes_without_fence(patch: pytest.MonkeyPatch) -> None:
    """Create the branch even if the intent has changed."""
    push = Refs.push

    def push_one_by_one(refs: Refs, *updates: RefUpdate) -> None:
        for update in updates:
            push(refs, update)

    patch.setattr(Refs, "push", push_one_by_one)


AT_A_FETCH = replace(MEANWHILE, applies=lambda call: call.words[1:2] == ("fetch",))


def is_deletion(call: Call) -> bool:
    """Return whether the call deletes a copy on the DVC remote."""
    return call.name.startswith("delete ")


AT_A_DELETION = replace(MEANWHILE, applies=is_deletion)
RULES = [
    (adopts_nothing, DEAD, replace(ON, applies=is_push)),
    (ignores_branches, refused(CONCURRENT), MEANWHILE),
    (ignores_other_intents, refused(CONCURRENT), LIES),
    (ignores_other_intents, WANTED, AT_A_DELETION),
    (reads_branches_first, refused(CONCURRENT), AT_A_FETCH),
    (ignores_identities, refused(ROLLING_BACK, whole=True), AT_A_FETCH),
    (deletes_its_intent_first, refused(ALONE), replace(ON, applies=is_deletion)),
    (pushes_without_fence, ALONE, VERY_LATE),
    (does_not_verify, ALONE, LIES),
    (does_not_listen, ROLLING_BACK, replace(ONCE, applies=is_push)),
    (does_not_probe_again, ROLLING_BACK, AT_A_FETCH),
]


@pytest.mark.parametrize(
    ("switch", "scenario", "kind"), RULES, ids=[f"{rule[0].__name__}-{rule[1].name}" for rule in RULES]
)
def test_a_fault_sweep_finds_a_transaction_that(stores: Stores, switch: Switch, scenario: Scenario, kind: Kind) -> None:
    """With one rule of the protocol switched off, the sweep finds a broken promise."""
    sweeps = Sweeps()
    sweep(stores, scenario, kind, sweeps, until_found=True, switch=switch)
    assert sweeps.findings
