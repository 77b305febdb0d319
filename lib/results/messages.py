"""The messages that tell a user how a run ended; `NOTIFY_URLS` says to whom.

Cannot: tell of a session that was killed, which nothing outlives: the next session of the experiment does, or `watch`.
"""

from __future__ import annotations

from lib.errors import DiscardedError, RunError
from lib.remotes.messages import send
from lib.results.report import Results
from lib.session import Session

LONGEST = 1500  # characters, which every service takes; run.log has all of an error


def tell_end(session: Session, results: Results, branch: str) -> None:
    """Send the state of a run that was published, with its metrics, branch, address on W&B, and curves."""
    state, metrics = results.trained.state, results.evaluated.metrics
    lines = [
        results.trained.reason,
        *(f"{split}, {head}: mAP50 {m50}, mAP50-95 {m95}" for split, head, _, _, _, m50, m95 in metrics.rows()),
        f"Branch: {branch}",
        f"W&B: {results.tracking.address}",
    ]
    _tell(session, f"{'is ' * (state == 'finished')}{state}", lines, picture=True)


def tell_error(session: Session, error: BaseException) -> None:
    """Send the error that stopped a run; an interrupt by the user is none."""
    if isinstance(error, Exception):
        remedy = error.remedy if isinstance(error, RunError) else ""
        what = error.what if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        state = "discarded" if isinstance(error, DiscardedError) else "failed"
        _tell(session, state, [session.credentials.redact(what), remedy and f"What to do: {remedy}"])


def _tell(session: Session, state: str, lines: list[str], *, picture: bool = False) -> None:
    curves = session.artifacts / "train/results.png" if picture else None
    text = "\n".join(filter(None, lines))[:LONGEST]
    for problem in send(session.credentials, f"{session.name} {state}", text, curves):
        print(f"Warning: {problem}", flush=True)
