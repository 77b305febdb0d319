"""Every external call of a publication, of an undoing and of a recovery breaks, in every way; see `faults.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from conftest import WEIGHTS, Stores
from fault_sweeps import Sweeps, World, assert_nothing_is_found, gather, in_memory, prepare, sweep
from faults import (
    ALONE,
    BESIDE,
    CLEANING,
    COLD,
    DEAD,
    DOOR,
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
    STRANGER,
    SWEEPING,
    VERY_LATE,
    WANTED,
    Call,
    FolderShelf,
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
    ignores_what_branches_name,
    ignores_what_others_name,
    takes_identities_for_yes_or_no,
)

from lib.sync import lease as lease_module
from lib.sync import vault as vault_module
from lib.sync.intent import StoredObject
from lib.sync.refs import Refs, RefUpdate

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

Pairs = tuple[tuple[Scenario, tuple[Kind, ...]], ...]

# parts of slow sweeps that are worth their few seconds each time
READING = replace(ONCE, name="fails once to read", applies=lambda call: call.words[1:2] == ("cat-file",))
LOSING = replace(LOST, name="loses its answer to a push", applies=is_push)
MIRRORING = replace(ONCE, name="fails once to mirror", applies=lambda call: call.words[1:2] in (("init",), ("config",)))

PUBLICATIONS: Pairs = (
    (COLD, (ONCE, ON, LOST, MIRRORING)),
    (ALONE, (ONCE, DOOR)),
    (STRANGER, (ON, LOST)),
    (PUBLISHED, (ON,)),
    (DEAD, (ON, LOST)),
    (BESIDE, (ON, DOOR, LOST)),
    (CLEANING, (ONCE, DOOR, READING)),
    (FINISHING, (ONCE, LOST)),
    (MOVING, (LOSING,)),
    (HOLDING, (ONCE, ON, LOST)),
)
UNDOINGS: Pairs = (
    (refused(ALONE), (ONCE, ON, DOOR, LOST)),
    (refused(STRANGER), (ONCE,)),
    (refused(PUBLISHED), (ONCE,)),
    (refused(DEAD), (ONCE, LOST)),
    (refused(BESIDE), (ONCE, DOOR)),
    (refused(CLEANING), (ONCE,)),
    (refused(FINISHING), (ONCE,)),
    (refused(MOVING), (ONCE, LOST)),
    (RECOVERY, (ONCE, ON, DOOR, LOST)),
    (SWEEPING, (ONCE, ON, LOST)),
)
DELAYS: Pairs = tuple((scenario, (LATE, VERY_LATE)) for scenario in (ALONE, DEAD, BESIDE, MOVING, refused(ALONE)))
MEANWHILES: Pairs = tuple(
    (scenario, (MEANWHILE,)) for scenario in (BESIDE, CLEANING, WANTED, refused(BESIDE), refused(CLEANING, whole=True))
)
KILLS: Pairs = (
    (COLD, (KILLED_BEFORE, KILLED_AFTER, KILLED_MIDWAY)),
    *((scenario, (KILLED_AFTER,)) for scenario in (STRANGER, DEAD, BESIDE, CLEANING, FINISHING, MOVING, HOLDING)),
    *((refused(scenario), (KILLED_AFTER,)) for scenario in (ALONE, STRANGER, DEAD, BESIDE)),
    (RECOVERY, (KILLED_AFTER,)),
    (SWEEPING, (KILLED_AFTER,)),
)
QUICK = {(ALONE, ONCE), (refused(ALONE), ONCE), (ALONE, LATE), (ALONE, VERY_LATE), (ALONE, LIES), (CLEANING, READING),
         (COLD, MIRRORING), (MOVING, LOSING)}  # fmt: skip
"""What a minute or two has room for; all of the rest is slow."""


tmp_path = pytest.fixture(in_memory)
sweeps = pytest.fixture(scope="session")(gather)


def each(pairs: Pairs) -> pytest.MarkDecorator:
    """Give every scenario with its kinds of fault to a test; what takes long is marked slow."""
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
    """A call fails once, from then on, with all of its kind, or does its work and loses its answer."""
    assert_nothing_is_found(stores, scenario, kind, sweeps)


@each(UNDOINGS)
def test_a_fault_at_any_call_of_an_undoing_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """The branch is refused, or a machine died before it, and then a call of the clean-up breaks too."""
    assert_nothing_is_found(stores, scenario, kind, sweeps)


@each(DELAYS)
def test_a_fault_that_delays_a_push_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """It was given up, and arrives after all: before somebody recovers, or when all is settled."""
    assert_nothing_is_found(stores, scenario, kind, sweeps)


@each(((ALONE, (LIES,)), (STRANGER, (LIES,))))
def test_a_fault_of_a_store_that_says_yes_and_keeps_nothing_is_found_before_the_branch(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """An upload that did not happen, without an error."""
    assert_nothing_is_found(stores, scenario, kind, sweeps)


@each(MEANWHILES)
def test_without_a_fault_what_another_does_right_before_any_call_leaves_both_whole(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """Another run of the same content ends its publication, or its undoing, between any two calls of this one."""
    assert_nothing_is_found(stores, scenario, kind, sweeps)


@each(KILLS)
def test_a_fault_that_kills_the_process_at_any_call_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """Kill -9 right before each call, right after it, in the middle of a write; all that it had started goes too."""
    assert_nothing_is_found(stores, scenario, kind, sweeps)


def test_worlds_that_a_retry_could_tell_apart_have_different_digests(stores: Stores) -> None:
    """A lock, half an upload, a changed file count; another loose object, time and drawn names do not."""
    shelf = FolderShelf(stores)
    prepare(stores, ALONE, shelf)
    seen = {World(stores, ALONE, shelf).digest()}
    for path in (
        "origin.git/refs/intents/x.lock", "clone/.git/index.lock", "clone/.git/objects/ab/tmp_obj_x", "storage/.x.tmp",
        "clone/.git/kaggle-sync/before-x.json", "clone/left.dvc",
    ):  # fmt: skip
        world = World(stores, ALONE, shelf)
        file = stores.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("left behind")
        digest = world.digest()
        assert digest not in seen, path
        seen.add(digest)
    world, same = World(stores, ALONE, shelf), World(stores, ALONE, shelf).digest()
    loose = stores.clone / ".git/objects/ab" / ("0" * 38)
    loose.parent.mkdir(exist_ok=True)
    loose.write_text("one more")
    (stores.clone / WEIGHTS[0]).touch()
    assert world.digest() == same


# ── with one rule switched off ────────────────────────────────────────────────────────────────────────────────────────


def looks_at_branches_first(patch: pytest.MonkeyPatch) -> None:
    """Look at the intents last: a publication between the two looks is seen in neither."""
    enter, named = lease_module.Lease.__enter__, Refs.named_objects
    seen: dict[int, set[str]] = {}

    def look_early(lease: lease_module.Lease) -> lease_module.Lease:
        entered = enter(lease)
        if lease._record.state == "aborting":
            seen[id(lease._refs)] = named(lease._refs, *vault_module.EVERYTHING)
        return entered

    def look_once(refs: Refs, *patterns: str) -> set[str]:
        return seen.pop(id(refs)) if id(refs) in seen else named(refs, *patterns)

    patch.setattr(lease_module.Lease, "__enter__", look_early)
    patch.setattr(Refs, "named_objects", look_once)


def deletes_its_intent_first(patch: pytest.MonkeyPatch) -> None:
    """Lose the journal before the work is done."""
    undo = vault_module.Vault.settle

    def undo_afterwards(vault: vault_module.Vault, seen: Any) -> bool:
        waiting: list[StoredObject] = []
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(vault_module.Vault, "_delete_new", lambda _vault, doomed, *_: waiting.extend(doomed))
            done = undo(vault, seen)
        for item in waiting:
            for identity in set(vault.objects.look([item.oid]).get(item.oid, {})) - set(item.before):
                vault.objects.delete(item.oid, identity)
        return done

    patch.setattr(vault_module.Vault, "settle", undo_afterwards)


def pushes_without_the_fence(patch: pytest.MonkeyPatch) -> None:
    """Create the branch whatever has become of the intent."""
    push = Refs.push

    def push_one_by_one(refs: Refs, *moves: RefUpdate) -> None:
        for move in moves:
            push(refs, move)

    patch.setattr(Refs, "push", push_one_by_one)


AT_A_FETCH = replace(MEANWHILE, applies=lambda call: call.words[1:2] == ("fetch",))


def is_deletion(call: Call) -> bool:
    """Whether it deletes a copy on the DVC remote."""
    return call.name.startswith("delete ")


AT_A_DELETION = replace(MEANWHILE, applies=is_deletion)
RULES = [
    (adopts_nothing, DEAD, replace(ON, applies=is_push)),
    (ignores_what_branches_name, refused(BESIDE), MEANWHILE),
    (ignores_what_others_name, refused(BESIDE), LIES),
    (ignores_what_others_name, WANTED, AT_A_DELETION),
    (looks_at_branches_first, refused(BESIDE), AT_A_FETCH),
    (takes_identities_for_yes_or_no, refused(CLEANING, whole=True), AT_A_FETCH),
    (deletes_its_intent_first, refused(ALONE), replace(ON, applies=is_deletion)),
    (pushes_without_the_fence, ALONE, VERY_LATE),
    (does_not_verify, ALONE, LIES),
    (does_not_listen, CLEANING, replace(ONCE, applies=is_push)),
    (does_not_probe_again, CLEANING, AT_A_FETCH),
]


@pytest.mark.parametrize(
    ("switch", "scenario", "kind"), RULES, ids=[f"{rule[0].__name__}-{rule[1].name}" for rule in RULES]
)
def test_a_fault_sweep_finds_a_publication_that(stores: Stores, switch: Switch, scenario: Scenario, kind: Kind) -> None:
    """The suite bites: with one rule of the protocol switched off it finds what the rule is there for."""
    sweeps = Sweeps()
    sweep(stores, scenario, kind, sweeps, until_found=True, switch=switch)
    assert sweeps.findings
