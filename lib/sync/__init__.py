"""Publish a run's large files and its Git branch as one transaction: both become visible, or neither.

Always true: a visible branch has all its objects. True after recovery: either the branch with every object, or no
branch, no new object and no intent.

Where things are. Large files (objects) go to the DVC remote, each under the hash of its content; small files go into a
commit on a new Git branch. The commit point is one atomic update of refs on the Git remote. The machine may vanish at
any moment, so the journal is not on the machine: an intent is a ref on the Git remote, `refs/intents/<id>`, whose
commit holds `intent.json`. It records what is being published and which copies were stored before. An identity names
one stored copy of an object (a file id on Drive, the time of writing in a folder).

Publish:

1. prepare   hash the objects and write their `.dvc` files
2. probe     list the identities stored under each object's path
3. adopt     read the checkpoint branches, then the other intents: copies that these may still delete do not count as
             stored before this publication
4. declare   create the intent in state `uploading`; then prove that the DVC remote can be written, too
5. listen    wait while another intent in state `aborting` or `cleaning` may delete one of our objects; then probe again
6. upload    send the missing objects; meanwhile the intent is rewritten every two minutes (its lease)
7. verify    every object is there with its size, and with its hash where the store reports one
8. stage     build the publication's commit in a private index; the user's index, HEAD and branch do not change
9. commit    one atomic push: the branch is created (it must not exist), the intent deleted (it must be as we wrote it)

Replace. A publication may replace other branches, or its own last commit (a checkpoint branch that moves). The commit
push then also deletes or moves those refs (each must still be where it was read). If they named other objects, it sets
the intent to `cleaning` instead of deleting it; after the push, the objects that only the replaced commits named are
deleted by the rules below. Until then no publication counts these objects as stored before.

Roll back. An exception, a retry and another machine all run the same steps; they may be interrupted and repeated:

1. mark      set the intent to `aborting` by compare-and-swap; this fences its owner: its commit push is rejected
2. read      the other intents, then the branches and tags
3. delete    the identities that were not stored before and that no other `uploading` intent, branch or tag names
4. end       delete the intent, last

A process that finds a `cleaning` intent finishes its deletions in the same way. To recover an intent is to roll it back
or to finish its deletions, as its state requires. Nothing is deleted from a DVC remote that is marked as another
repository's (`owner-` and that repository's first commit, written by its first publication): only the refs of that
repository show what it needs.

One session per run. A run holds `refs/runs/<name>` from its start to its end (`lib.sync.hold`), and each of its commit
pushes moves that ref too. Two sessions of one experiment therefore never write one checkpoint. A session whose lease
expired and was taken over is fenced: its next push is rejected.

Not promised (`check()` finds what these cases leave):

- somebody deletes objects by hand, or pushes the same content by hand while its publication is rolled back
- an upload reaches the store after its run has given it up
- a process sleeps past its lease between a check and the one request that follows it

Entry points: `sync_outputs()` publishes, `recover()` rolls back or finishes what other publications left, `check()`
inspects both remotes, `rehearse()` tries both remotes beforehand, `RunLock` keeps other sessions from the same run.
This package knows nothing about YOLO.
"""

from lib.sync.check import Checked, check
from lib.sync.hold import RUN_PLACES, RunLock
from lib.sync.intent import read_run
from lib.sync.publication import Publication, Published
from lib.sync.publish import sync_outputs
from lib.sync.recover import recover
from lib.sync.refs import Refs
from lib.sync.rehearse import Rehearsed, rehearse

__all__ = [
    "RUN_PLACES",
    "Checked",
    "Publication",
    "Published",
    "Refs",
    "Rehearsed",
    "RunLock",
    "check",
    "read_run",
    "recover",
    "rehearse",
    "sync_outputs",
]
