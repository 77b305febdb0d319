"""Read and move the claims of runs, `refs/pushes/<run>` on the Git remote; `plan.py` explains them.

Guarantees: of any number of sweeps that move a claim from the same state, one succeeds, and it knows that it did. The
claim is a child of the commit that it names, which therefore can be read as long as the claim exists, even if the
branch was rewritten. A claim that this version cannot read is an error, never overwritten.
"""

from __future__ import annotations

import secrets

from pydantic import ValidationError

from lib.errors import GitPushError, SyncError
from lib.sweep.plan import Claim
from lib.sync import Refs
from lib.sync.refs import RefUpdate

PUSHES = "refs/pushes/"


def read_claims(refs: Refs) -> dict[str, tuple[str, Claim]]:
    """Return {run: (commit of the claim, claim)}. Raises `SyncError` for a claim of another version."""
    found = {}
    for ref, (commit, text) in refs.read_records(f"{PUSHES}*", "claim.json").items():
        try:
            found[ref.removeprefix(PUSHES)] = commit, Claim.model_validate_json(text)
        except ValidationError:
            raise SyncError(
                f"{ref} was written by another version of this project.",
                state="nothing was pushed.",
                remedy=f"use that version, or delete the ref when its run has ended: `git push origin :{ref}`.",
            ) from None
    return found


def move_claim(refs: Refs, run: str, old: str | None, claim: Claim | None) -> str | None:
    """Move the claim of a run from the commit `old` (None: there is none) to `claim`, or delete it; return its commit.

    Returns None if another sweep has moved it meanwhile, or if it was deleted. Raises `GitPushError` if the remote
    refuses the push or does not answer; the claim may have been moved all the same, and then holds for `GRACE`.
    """
    ref, new = f"{PUSHES}{run}", None
    if claim is not None:
        if old is not None:
            refs.bring(ref, claim.commit)  # a shallow clone, or one of another branch, may lack it
        text = claim.model_copy(update={"nonce": secrets.token_hex(8)}).model_dump_json(indent=1)
        new = refs.write_file("claim.json", f"{text}\n", "Pushed to Kaggle", claim.commit)
    try:
        refs.push_patiently(lambda: [RefUpdate(ref, old, new)], lambda: refs.list_refs(ref).get(ref) == new)
    except GitPushError:
        if refs.list_refs(ref).get(ref) == old:
            raise
        return None
    return new
