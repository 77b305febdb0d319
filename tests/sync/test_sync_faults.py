"""Break every external call of a publication, a session, a roll back and a recovery; see `faults.py`."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import WEIGHTS, Stores
from fault_sweeps import Sweeps, World, assert_no_findings, gather, in_memory, prepare, sweep
from faults import (
    BOUNDARY,
    DELAYED,
    DIES,
    DIES_AFTER,
    DIES_AND_RETRIES,
    DIES_AT_A_PUSH,
    LATE,
    LATE_AND_REPEATED,
    LIES,
    LOST,
    LOST_PUSH,
    MEANWHILE,
    ON,
    ONCE,
    REPEATED,
    VERY_LATE,
    DvcRemote,
    Kind,
    creates_a_branch,
    is_deletion,
    is_push,
    moves_a_checkpoint,
    stores_an_object,
)
from publications import CHECKPOINT
from scenarios import (
    ALONE,
    COLD,
    CONCURRENT,
    DEAD,
    INTERRUPTED,
    PUBLISHED,
    PUBLISHED_MEANWHILE,
    RECOVERY,
    RECOVERY_MEANWHILE,
    RECOVERY_OF_A_CHECKPOINT,
    RECOVERY_OF_A_SESSION,
    RESUMING,
    ROLLING_BACK,
    SESSION,
    STORED_MEANWHILE,
    STRANGER,
    SWEPT,
    TAKEN_OVER,
    TAKING_OVER,
    Scenario,
    refused,
)
from switches import (
    Switch,
    declares_nothing,
    deletes_before_the_fence,
    deletes_old_files_first,
    does_not_verify,
    drops_its_run_first,
    inherits_nothing,
    keeps_nothing,
    lists_files_last,
    overwrites,
    pushes_branches_alone,
    reads_nothing_after_a_failure,
    relies_on_others,
    sweeps_files_of_the_living,
    sweeps_named_files,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

Pairs = tuple[tuple[Scenario, tuple[Kind, ...]], ...]

AT_A_PUSH, AT_A_CREATE = (replace(MEANWHILE, applies=each) for each in (is_push, stores_an_object))
PUBLICATIONS: Pairs = (
    (COLD, (ONCE, ON, LOST)),
    (ALONE, (ONCE, BOUNDARY, REPEATED, LOST_PUSH, LIES)),
    (STRANGER, (ON, LOST, LIES)),
    (PUBLISHED, (ON,)),
    (DEAD, (ON, LOST)),
    (CONCURRENT, (ON, BOUNDARY, LOST)),
    (ROLLING_BACK, (ONCE, BOUNDARY)),
    (SESSION, (ONCE, ON, LOST, REPEATED, LOST_PUSH)),
    (INTERRUPTED, (ONCE, LOST)),
    (TAKING_OVER, (ONCE, ON, LOST)),
    (RESUMING, (ONCE,)),
    (refused(SESSION, CHECKPOINT, whole=True), (ONCE,)),
)
ROLLBACKS: Pairs = (
    (refused(ALONE), (ONCE, ON, BOUNDARY, LOST)),
    (refused(DEAD), (ONCE, LOST)),
    (refused(CONCURRENT), (ONCE, BOUNDARY)),
    *((refused(scenario), (ONCE,)) for scenario in (STRANGER, PUBLISHED, ROLLING_BACK, SESSION, TAKING_OVER)),
    (RECOVERY, (ONCE, ON, BOUNDARY, LOST)),
    (RECOVERY_OF_A_SESSION, (ONCE, LOST)),
    (RECOVERY_OF_A_CHECKPOINT, (ONCE, LOST)),
)
DELAYS: Pairs = (
    *((scenario, (LATE, LATE_AND_REPEATED, VERY_LATE, DELAYED, DIES_AT_A_PUSH)) for scenario in (ALONE, SESSION, DEAD)),
    *((scenario, (LATE, VERY_LATE)) for scenario in (INTERRUPTED, TAKING_OVER, CONCURRENT, refused(ALONE))),
)
MEANWHILES: Pairs = (
    *((scenario, (AT_A_PUSH, MEANWHILE)) for scenario in (TAKEN_OVER, SWEPT)),
    *((refused(scenario, whole=True), (AT_A_CREATE,)) for scenario in (STORED_MEANWHILE, PUBLISHED_MEANWHILE)),
    *((scenario, (MEANWHILE,)) for scenario in (CONCURRENT, ROLLING_BACK, PUBLISHED_MEANWHILE, RECOVERY_MEANWHILE)),
    *((scenario, (MEANWHILE,)) for scenario in (refused(CONCURRENT), refused(ROLLING_BACK, whole=True))),
)
DEATHS: Pairs = (
    *((scenario, (DIES_AFTER,)) for scenario in (COLD, STRANGER, DEAD, CONCURRENT, ROLLING_BACK, TAKING_OVER)),
    *((scenario, (DIES_AFTER, DIES_AND_RETRIES)) for scenario in (ALONE, SESSION, INTERRUPTED)),
    *((refused(scenario), (DIES_AFTER,)) for scenario in (ALONE, STRANGER, DEAD, CONCURRENT)),
    *((each, (DIES_AFTER,)) for each in (RECOVERY, RECOVERY_OF_A_SESSION, RECOVERY_OF_A_CHECKPOINT)),
)
QUICK = {
    (ALONE, ONCE), (refused(ALONE), ONCE), (RECOVERY, ONCE), (ALONE, LIES), (TAKEN_OVER, AT_A_PUSH), (SWEPT, AT_A_PUSH),
    *((scenario, kind) for scenario in (ALONE, SESSION) for kind in (REPEATED, LOST_PUSH, LATE, VERY_LATE, DELAYED)),
    *((scenario, DIES_AT_A_PUSH) for scenario in (ALONE, SESSION)),
    *((refused(scenario, whole=True), AT_A_CREATE) for scenario in (STORED_MEANWHILE, PUBLISHED_MEANWHILE)),
}  # fmt: skip
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
    """The branch is refused, or the machine has died before its commit push; then a call of the roll back fails too."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(DELAYS)
def test_a_fault_that_delays_a_push_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """The client gives the push up, but it arrives: between two calls of the roll back, before or after a recovery."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(MEANWHILES)
def test_what_others_do_right_before_any_call_leaves_both_publications_complete(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """Others end a publication or a roll back, take the run over, sweep, or store the same content with plain DVC."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(DEATHS)
def test_a_fault_that_ends_the_process_at_any_call_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: Scenario, kind: Kind
) -> None:
    """The machine dies right after a call; then another clone recovers, or the same one starts again."""
    assert_no_findings(stores, scenario, kind, sweeps)


def test_worlds_that_a_retry_could_tell_apart_have_different_digests(stores: Stores) -> None:
    """A lock, half an upload or a changed file make a difference; a loose object or a time does not."""
    remote = DvcRemote(stores)
    prepare(stores, ALONE, remote)
    seen = {World(stores, ALONE, remote).digest()}
    for path in (
        "origin.git/refs/runs/x.lock", "clone/.git/index.lock", "clone/.git/objects/ab/tmp_obj_x", "storage/.x.part",
        "clone/.git/kaggle-sync/index-1", "clone/left.dvc",
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


AT_A_FETCH = replace(MEANWHILE, applies=lambda call: call.words[1:2] == ("fetch",))
RULES = [
    (pushes_branches_alone, ALONE, replace(VERY_LATE, applies=creates_a_branch)),
    (pushes_branches_alone, SESSION, replace(VERY_LATE, applies=moves_a_checkpoint)),
    (declares_nothing, ALONE, replace(DIES, applies=creates_a_branch)),
    (inherits_nothing, RECOVERY, ONCE),
    (deletes_before_the_fence, ALONE, DELAYED),
    (drops_its_run_first, refused(ALONE), replace(ON, applies=is_deletion)),
    (reads_nothing_after_a_failure, ALONE, LOST_PUSH),
    (keeps_nothing, refused(PUBLISHED_MEANWHILE, whole=True), AT_A_CREATE),
    (overwrites, refused(STORED_MEANWHILE, whole=True), AT_A_CREATE),
    (relies_on_others, ROLLING_BACK, replace(MEANWHILE, applies=creates_a_branch)),
    (does_not_verify, ALONE, LIES),
    (deletes_old_files_first, SESSION, replace(DIES, applies=moves_a_checkpoint)),
    (sweeps_named_files, RECOVERY_OF_A_CHECKPOINT, ONCE),
    (sweeps_files_of_the_living, SWEPT, replace(MEANWHILE, applies=moves_a_checkpoint)),
    (lists_files_last, RECOVERY_MEANWHILE, AT_A_FETCH),
]


@pytest.mark.parametrize(
    ("switch", "scenario", "kind"), RULES, ids=[f"{rule[0].__name__}-{rule[1].name}" for rule in RULES]
)
def test_a_fault_sweep_finds_a_transaction_that(stores: Stores, switch: Switch, scenario: Scenario, kind: Kind) -> None:
    """With one rule of the protocol switched off, the sweep finds a broken promise; without the switch, it does not."""
    sweeps = Sweeps()
    sweep(stores, scenario, kind, sweeps, until_found=True, switch=switch)
    print(sweeps.findings)
    assert sweeps.findings
