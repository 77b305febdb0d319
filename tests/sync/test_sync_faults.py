"""Break every external call of a publication, a session, a roll back and a recovery; see `faults.py`."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import faults as f
import pytest
import scenarios as s
import switches
from conftest import WEIGHTS, Stores
from fault_sweeps import Sweeps, World, assert_no_findings, gather, in_memory, prepare, sweep
from publications import CHECKPOINT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own

Pairs = tuple[tuple[s.Scenario, tuple[f.Kind, ...]], ...]

AT_A_PUSH, AT_A_CREATE = (replace(f.MEANWHILE, applies=each) for each in (f.is_push, f.stores_an_object))
PUBLICATIONS: Pairs = (
    (s.COLD, (f.ONCE, f.ON, f.LOST)),
    (s.ALONE, (f.ONCE, f.BOUNDARY, f.REPEATED, f.LOST_PUSH, f.LIES)),
    (s.STRANGER, (f.ON, f.LOST, f.LIES)),
    (s.PUBLISHED, (f.ON,)),
    (s.DEAD, (f.ON, f.LOST)),
    (s.CONCURRENT, (f.ON, f.BOUNDARY, f.LOST)),
    (s.ROLLING_BACK, (f.ONCE, f.BOUNDARY)),
    (s.SESSION, (f.ONCE, f.ON, f.LOST, f.REPEATED, f.LOST_PUSH)),
    (s.INTERRUPTED, (f.ONCE, f.LOST)),
    (s.TAKING_OVER, (f.ONCE, f.ON, f.LOST)),
    (s.RESUMING, (f.ONCE,)),
    (s.refused(s.SESSION, CHECKPOINT, whole=True), (f.ONCE,)),
)
ROLLBACKS: Pairs = (
    (s.refused(s.ALONE), (f.ONCE, f.ON, f.BOUNDARY, f.LOST)),
    (s.refused(s.DEAD), (f.ONCE, f.LOST)),
    (s.refused(s.CONCURRENT), (f.ONCE, f.BOUNDARY)),
    *(
        (s.refused(scenario), (f.ONCE,))
        for scenario in (s.STRANGER, s.PUBLISHED, s.ROLLING_BACK, s.SESSION, s.TAKING_OVER)
    ),
    (s.RECOVERY, (f.ONCE, f.ON, f.BOUNDARY, f.LOST)),
    (s.RECOVERY_OF_A_SESSION, (f.ONCE, f.LOST)),
    (s.RECOVERY_OF_A_CHECKPOINT, (f.ONCE, f.LOST)),
)
LATE = (f.LATE, f.LATE_AND_REPEATED, f.VERY_LATE, f.DELAYED, f.DIES_AT_A_PUSH)
DELAYS: Pairs = (
    *((scenario, LATE) for scenario in (s.ALONE, s.SESSION, s.DEAD)),
    *((each, (f.LATE, f.VERY_LATE)) for each in (s.INTERRUPTED, s.TAKING_OVER, s.CONCURRENT, s.refused(s.ALONE))),
)
MEANWHILES: Pairs = (
    *((scenario, (AT_A_PUSH, f.MEANWHILE)) for scenario in (s.TAKEN_OVER, s.SWEPT)),
    *((s.refused(scenario, whole=True), (AT_A_CREATE,)) for scenario in (s.STORED_MEANWHILE, s.PUBLISHED_MEANWHILE)),
    *(
        (scenario, (f.MEANWHILE,))
        for scenario in (s.CONCURRENT, s.ROLLING_BACK, s.PUBLISHED_MEANWHILE, s.RECOVERY_MEANWHILE)
    ),
    *((scenario, (f.MEANWHILE,)) for scenario in (s.refused(s.CONCURRENT), s.refused(s.ROLLING_BACK, whole=True))),
)
DEATHS: Pairs = (
    *(
        (scenario, (f.DIES_AFTER,))
        for scenario in (s.COLD, s.STRANGER, s.DEAD, s.CONCURRENT, s.ROLLING_BACK, s.TAKING_OVER)
    ),
    *((scenario, (f.DIES_AFTER, f.DIES_AND_RETRIES)) for scenario in (s.ALONE, s.SESSION, s.INTERRUPTED)),
    *((s.refused(scenario), (f.DIES_AFTER,)) for scenario in (s.ALONE, s.STRANGER, s.DEAD, s.CONCURRENT)),
    *((each, (f.DIES_AFTER,)) for each in (s.RECOVERY, s.RECOVERY_OF_A_SESSION, s.RECOVERY_OF_A_CHECKPOINT)),
)
QUICK = {
    *((scenario, f.ONCE) for scenario in (s.ALONE, s.refused(s.ALONE), s.RECOVERY)),
    *((scenario, AT_A_PUSH) for scenario in (s.TAKEN_OVER, s.SWEPT)),
    *((s.refused(scenario, whole=True), AT_A_CREATE) for scenario in (s.STORED_MEANWHILE, s.PUBLISHED_MEANWHILE)),
    *product((s.ALONE, s.SESSION), (f.REPEATED, f.LOST_PUSH, *LATE)),
    (s.ALONE, f.LIES),
}
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
    stores: Stores, sweeps: Sweeps, scenario: s.Scenario, kind: f.Kind
) -> None:
    """A call fails once, from then on, with all calls of its sort, or happens and loses its answer."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(ROLLBACKS)
def test_a_fault_at_any_call_of_a_rollback_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: s.Scenario, kind: f.Kind
) -> None:
    """The branch is refused, or the machine has died before its commit push; then a call of the roll back fails too."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(DELAYS)
def test_a_fault_that_delays_a_push_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: s.Scenario, kind: f.Kind
) -> None:
    """The client gives the push up, but it arrives: between two calls of the roll back, before or after a recovery."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(MEANWHILES)
def test_what_others_do_right_before_any_call_leaves_both_publications_complete(
    stores: Stores, sweeps: Sweeps, scenario: s.Scenario, kind: f.Kind
) -> None:
    """Others end a publication or a roll back, take the run over, sweep, or store the same content with plain DVC."""
    assert_no_findings(stores, scenario, kind, sweeps)


@each(DEATHS)
def test_a_fault_that_ends_the_process_at_any_call_ends_in_all_or_nothing(
    stores: Stores, sweeps: Sweeps, scenario: s.Scenario, kind: f.Kind
) -> None:
    """The machine dies right after a call; then another clone recovers, or the same one starts again."""
    assert_no_findings(stores, scenario, kind, sweeps)


def test_worlds_that_a_retry_could_tell_apart_have_different_digests(stores: Stores) -> None:
    """A lock, half an upload or a changed file make a difference; a loose object or a time does not."""
    remote = f.DvcRemote(stores)
    prepare(stores, s.ALONE, remote)
    seen = {World(stores, s.ALONE, remote).digest()}
    for path in (
        "origin.git/refs/runs/x.lock", "clone/.git/index.lock", "clone/.git/objects/ab/tmp_obj_x", "storage/.x.part",
        "clone/.git/kaggle-sync/index-1", "clone/left.dvc",
    ):  # fmt: skip
        world = World(stores, s.ALONE, remote)
        file = stores.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("left behind")
        digest = world.digest()
        assert digest not in seen, path
        seen.add(digest)
    world, same = World(stores, s.ALONE, remote), World(stores, s.ALONE, remote).digest()
    loose = stores.clone / ".git/objects/ab" / ("0" * 38)
    loose.parent.mkdir(exist_ok=True)
    loose.write_text("one more")
    (stores.clone / WEIGHTS[0]).touch()
    assert world.digest() == same


AT_A_FETCH = replace(f.MEANWHILE, applies=lambda call: call.words[1:2] == ("fetch",))
RULES = [
    (switches.pushes_branches_alone, s.ALONE, replace(f.VERY_LATE, applies=f.creates_a_branch)),
    (switches.pushes_branches_alone, s.SESSION, replace(f.VERY_LATE, applies=f.moves_a_checkpoint)),
    (switches.declares_nothing, s.ALONE, replace(f.DIES, applies=f.creates_a_branch)),
    (switches.inherits_nothing, s.RECOVERY, f.ONCE),
    (switches.deletes_before_the_fence, s.ALONE, f.DELAYED),
    (switches.drops_its_run_first, s.refused(s.ALONE), replace(f.ON, applies=f.is_deletion)),
    (switches.reads_nothing_after_a_failure, s.ALONE, f.LOST_PUSH),
    (switches.keeps_nothing, s.refused(s.PUBLISHED_MEANWHILE, whole=True), AT_A_CREATE),
    (switches.overwrites, s.refused(s.STORED_MEANWHILE, whole=True), AT_A_CREATE),
    (switches.relies_on_others, s.ROLLING_BACK, replace(f.MEANWHILE, applies=f.creates_a_branch)),
    (switches.does_not_verify, s.ALONE, f.LIES),
    (switches.deletes_old_files_first, s.SESSION, replace(f.DIES, applies=f.moves_a_checkpoint)),
    (switches.sweeps_named_files, s.RECOVERY_OF_A_CHECKPOINT, f.ONCE),
    (switches.sweeps_files_of_the_living, s.SWEPT, replace(f.MEANWHILE, applies=f.moves_a_checkpoint)),
    (switches.lists_files_last, s.RECOVERY_MEANWHILE, AT_A_FETCH),
]


@pytest.mark.parametrize(
    ("switch", "scenario", "kind"), RULES, ids=[f"{rule[0].__name__}-{rule[1].name}" for rule in RULES]
)
def test_a_fault_sweep_finds_a_transaction_that(
    stores: Stores, switch: switches.Switch, scenario: s.Scenario, kind: f.Kind
) -> None:
    """With one rule of the protocol switched off, the sweep finds a broken promise; without the switch, it does not."""
    sweeps = Sweeps()
    sweep(stores, scenario, kind, sweeps, until_found=True, switch=switch)
    print(sweeps.findings)
    assert sweeps.findings
