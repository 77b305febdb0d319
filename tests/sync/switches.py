"""Switches that each turn off one rule of the protocol; the suites must then find the damage that the rule prevents.

These work for every suite; a switch that depends on how a suite runs the code is in that suite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lib.sync import publish as publish_module
from lib.sync import remotes as remotes_module
from lib.sync.intent import Intent, StoredObject
from lib.sync.refs import Refs, SeenIntent
from lib.sync.remotes import Remotes

Switch = Callable[[pytest.MonkeyPatch], None]


def adopts_nothing(patch: pytest.MonkeyPatch) -> None:
    """Count copies that another intent may still delete as stored before."""
    patch.setattr(Intent, "may_delete", lambda *_: False)


def ignores_branches(patch: pytest.MonkeyPatch) -> None:
    """Delete objects that a branch names."""
    patch.setattr(Refs, "named_objects", lambda *_: set())


def ignores_other_intents(patch: pytest.MonkeyPatch) -> None:
    """Delete objects that another run is about to publish."""
    patch.setattr(remotes_module, "_named_by", lambda *_: False)


def ignores_identities(patch: pytest.MonkeyPatch) -> None:
    """Delete no copy of an object that was stored before, even if its copy is a new one."""
    delete = Remotes._delete_new

    def delete_if_none_was_stored(remotes: Remotes, to_delete: Sequence[StoredObject], *rest: Any) -> None:
        delete(remotes, [item for item in to_delete if not item.before], *rest)

    patch.setattr(Remotes, "_delete_new", delete_if_none_was_stored)


def does_not_verify(patch: pytest.MonkeyPatch) -> None:
    """Push the branch without checking the objects."""
    patch.setattr(publish_module._Publishing, "_verify", lambda *_: None)


def does_not_listen(patch: pytest.MonkeyPatch) -> None:
    """Do not wait for others that are deleting the same objects."""
    patch.setattr(publish_module._Publishing, "_listen", lambda *_: None)


def does_not_probe_again(patch: pytest.MonkeyPatch) -> None:
    """Upload according to the first probe instead of a second one."""
    upload = publish_module._Publishing._upload
    plan = publish_module._Publishing._plan
    kept: dict[str, Any] = {}

    def plan_and_keep(publishing: publish_module._Publishing, items: Sequence[StoredObject]) -> Intent:
        look = publishing.remotes.objects.look
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(publishing.remotes.objects, "look", lambda oids: kept.setdefault("seen", look(oids)))
            return plan(publishing, items)

    def upload_blindly(publishing: publish_module._Publishing, *given: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(publishing.remotes.objects, "look", lambda _oids: kept.pop("seen"))
            upload(publishing, *given)

    patch.setattr(publish_module._Publishing, "_plan", plan_and_keep)
    patch.setattr(publish_module._Publishing, "_upload", upload_blindly)


def hides_superseded_objects(patch: pytest.MonkeyPatch) -> None:
    """Hide from others the objects that will be deleted after the branch that names them has moved."""
    patch.setattr(
        Intent,
        "may_delete",
        lambda intent, oid, identity: any(item.oid == oid and identity not in item.before for item in intent.objects),
    )
    patch.setattr(Intent, "is_deleting", lambda intent, oid: intent.state == "aborting" and intent.names(oid))


def rolls_back_live_publications(patch: pytest.MonkeyPatch) -> None:
    """Roll back publications in progress."""
    _ignore_leases(patch, "uploading")


def takes_over_live_rollbacks(patch: pytest.MonkeyPatch) -> None:
    """Take over rollbacks in progress."""
    _ignore_leases(patch, "aborting")


def _ignore_leases(patch: pytest.MonkeyPatch, state: str) -> None:
    may_recover = Remotes.may_recover

    def may_recover_live(remotes: Remotes, seen: SeenIntent, *rest: Any) -> bool:
        if seen.record is not None and seen.record.state == state and seen.record.owner != remotes.me:
            return True
        return may_recover(remotes, seen, *rest)

    patch.setattr(Remotes, "may_recover", may_recover_live)
