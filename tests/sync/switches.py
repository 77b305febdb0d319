"""The protocol's rules, each to be switched off: what the suites must then find is the damage that it prevents.

These are switched off in the same way whatever plays the run; what depends on that stands beside its suite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from lib.sync import publish as publish_module
from lib.sync import vault as vault_module
from lib.sync.intent import Intent, StoredObject
from lib.sync.refs import Refs, SeenIntent

Switch = Callable[[pytest.MonkeyPatch], None]


def adopts_nothing(patch: pytest.MonkeyPatch) -> None:
    """Let what another's intent answers for count as standing there before."""
    patch.setattr(Intent, "may_delete", lambda *_: False)


def ignores_what_branches_name(patch: pytest.MonkeyPatch) -> None:
    """Delete what a branch names."""
    patch.setattr(Refs, "named_objects", lambda *_: set())


def ignores_what_others_name(patch: pytest.MonkeyPatch) -> None:
    """Delete what another run is about to publish."""
    patch.setattr(vault_module, "_named_by", lambda *_: False)


def takes_identities_for_yes_or_no(patch: pytest.MonkeyPatch) -> None:
    """Delete nothing where anything stood before, whoever stored it again."""
    delete = vault_module.Vault._delete_new

    def delete_where_nothing_stood(vault: vault_module.Vault, doomed: Sequence[StoredObject], *rest: Any) -> None:
        delete(vault, [item for item in doomed if not item.before], *rest)

    patch.setattr(vault_module.Vault, "_delete_new", delete_where_nothing_stood)


def does_not_verify(patch: pytest.MonkeyPatch) -> None:
    """Push the branch without a look at the objects."""
    patch.setattr(publish_module._Publishing, "_verify", lambda *_: None)


def does_not_listen(patch: pytest.MonkeyPatch) -> None:
    """Pass by who is deleting the same objects."""
    patch.setattr(publish_module._Publishing, "_listen", lambda *_: None)


def does_not_probe_again(patch: pytest.MonkeyPatch) -> None:
    """Let count at the upload what the first look saw."""
    upload = publish_module._Publishing._upload
    plan = publish_module._Publishing._plan
    kept: dict[str, Any] = {}

    def plan_and_keep(publishing: publish_module._Publishing, items: Sequence[StoredObject]) -> Intent:
        look = publishing.vault.objects.look
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(publishing.vault.objects, "look", lambda oids: kept.setdefault("seen", look(oids)))
            return plan(publishing, items)

    def upload_blindly(publishing: publish_module._Publishing, *given: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(publishing.vault.objects, "look", lambda _oids: kept.pop("seen"))
            upload(publishing, *given)

    patch.setattr(publish_module._Publishing, "_plan", plan_and_keep)
    patch.setattr(publish_module._Publishing, "_upload", upload_blindly)


def announces_nothing_superseded(patch: pytest.MonkeyPatch) -> None:
    """Keep from others what will be deleted when the branch that names it has moved."""
    patch.setattr(
        Intent,
        "may_delete",
        lambda intent, oid, identity: any(item.oid == oid and identity not in item.before for item in intent.objects),
    )
    patch.setattr(Intent, "is_deleting", lambda intent, oid: intent.state == "aborting" and intent.names(oid))


def takes_living_owners_for_dead(patch: pytest.MonkeyPatch) -> None:
    """Undo publications that are under way."""
    _respect_no_lease(patch, "uploading")


def takes_living_undoers_for_dead(patch: pytest.MonkeyPatch) -> None:
    """Take over from those who are undoing something this moment."""
    _respect_no_lease(patch, "aborting")


def _respect_no_lease(patch: pytest.MonkeyPatch, state: str) -> None:
    may_settle = vault_module.Vault.may_settle

    def may_settle_all(vault: vault_module.Vault, seen: SeenIntent, *rest: Any) -> bool:
        if seen.record is not None and seen.record.state == state and seen.record.owner != vault.me:
            return True
        return may_settle(vault, seen, *rest)

    patch.setattr(vault_module.Vault, "may_settle", may_settle_all)
