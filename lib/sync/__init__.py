"""Publish a run's large files and its Git branch as one transaction: both become visible, or neither.

Large files (objects) go to the DVC remote, small files into a commit on a new Git branch. The commit point is one
atomic push, which also moves `refs/runs/<run>`: the lock and the journal of the run. docs/sync-protocol.md explains the
protocol, and `tests/sync/protocol_model.py` explores it.

`sync_outputs()` publishes, `discard()` ends a run without, `recover()` rolls back what dead sessions left, `check()`
inspects both, `rehearse()` tries both beforehand, `RunLock` keeps other sessions from the same run,
`CheckpointPublisher` publishes checkpoints.
This package knows nothing about YOLO.
"""

from lib.sync.check import Checked, check
from lib.sync.checkpoints import CheckpointPublisher, fetch_file
from lib.sync.lock import CHECKPOINTS, RunLock
from lib.sync.publication import Publication, Published
from lib.sync.publish import sync_outputs
from lib.sync.record import ASKS, RUNS, STOPS, Stop, read_run, short_name
from lib.sync.recover import discard, recover
from lib.sync.refs import Refs
from lib.sync.rehearse import LARGEST, Rehearsed, rehearse
from lib.sync.remotes import open_remotes

__all__ = [
    "ASKS", "CHECKPOINTS", "LARGEST", "RUNS", "STOPS", "Checked", "CheckpointPublisher", "Publication", "Published",
    "Refs", "Rehearsed", "RunLock", "Stop", "check", "discard", "fetch_file", "open_remotes", "read_run", "recover",
    "rehearse", "short_name", "sync_outputs",
]  # fmt: skip
