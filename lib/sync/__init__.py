"""The vault: a run's large files and its branch become visible together, or not at all.

Two stores, one truth. Large files (objects) go to the DVC remote under the hash of their content; small ones go into a
commit on a new Git branch. The commit point is one atomic update of refs on the Git remote. Because the machine may
vanish at any moment, the journal is not on the machine: an intent is a ref on the Git remote, `refs/intents/<id>`,
whose commit holds `intent.json` and says what is being published and what stood there before.

1. prepare   hash the objects and write their `.dvc` files
2. probe     which identities stand under each object's path: file ids on Drive, the time of writing in a folder
3. adopt     read the checkpoint branches, then the other intents: what they may yet delete did not stand there before
4. declare   create the intent, state `uploading`; then prove on the DVC remote, too, that it may be written
5. listen    wait while another intent that is `aborting` or `cleaning` holds an object of ours; then probe again
6. upload    what is missing; the intent is rewritten every two minutes meanwhile (its lease)
7. verify    every object is there with its size, and its hash where the store tells it
8. stage     build the publication's commit through an index of its own; the user's index, HEAD and branch stay
9. commit    one atomic push: the branch is created (it must not exist), the intent deleted (it must be as we wrote it)

A publication may take the place of other branches, or of its own last commit (a checkpoint that moves). The commit push
then removes or moves these too (they must stand where they were read) and turns the intent to `cleaning`; after it,
what only they named is deleted as below. Until then such objects count for nobody as standing there before.

Undoing, the same from an exception, a retry or a stranger's machine, and safe to repeat or to die in: mark the intent
`aborting` by compare-and-swap, which fences its owner; look at the other intents, then at branches and tags; delete the
identities that were not there before and that nobody else names; delete the intent last. Who finds `cleaning` goes on
with that in the same way. Nothing is deleted from a DVC remote that is marked as another repository's (`owner-` and its
first commit, written by the first publication): only that one's refs can say what it needs.

A run as a whole holds `refs/runs/<name>` from its start to its end (`lib.sync.hold`), and each of its commit pushes
moves that ref along: two sessions of one experiment never write one checkpoint, and who slept through its lease and was
taken over from publishes nothing any more.

Always true: a branch that can be seen has all its objects. True after recovery: the branch with every object, or no
branch, no new object and no intent. Not promised: against somebody who deletes objects by hand, or pushes the same
content by hand while a run of it is undone; against an upload that reaches the store after its run has given it up; and
for a process that sleeps past its lease between a look and the one request that follows it. `check()` finds what these
leave.

`sync_outputs()` publishes, `recover()` settles what others left, `check()` looks, `rehearse()` tries beforehand,
`RunHold` keeps others from the same run.
Nothing here knows YOLO.
"""

from lib.sync.check import Checked, check
from lib.sync.hold import RUN_PLACES, RunHold
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
    "RunHold",
    "check",
    "read_run",
    "recover",
    "rehearse",
    "sync_outputs",
]
