"""Explain what a service's refusal means, repeat a request whose refusal passes by itself, and limit their number.

Guarantees: pauses grow, are random so that sessions do not repeat in step, and end at a limit. A time that the service
names itself (`Retry-After`) is waited for, up to `LONGEST`. A refusal that stays is never repeated.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
LONGEST = 300.0  # seconds; a service that asks to wait longer is not waited for
SETTLED = 1.0  # seconds in which the requests under way may be refused too, which says nothing new


@dataclass(frozen=True)
class Answer:
    """What a service's refusal or failure means, and what to do about it."""

    what: str
    remedy: str
    patience: float = 0.0
    """The longest pause, in seconds, after which the same request may succeed; 0: never, without a change."""
    is_account: bool = False
    """Whether the service rejects the key itself."""
    status: int = 0
    """The HTTP status of the reply, if it is known."""
    reason: str = ""
    """The service's own word for the reason, if there is one."""
    after: float = 0.0
    """The seconds that the service asks to wait, if it names them."""

    @property
    def is_transient(self) -> bool:
        """Return whether the same request may succeed a little later."""
        return self.patience > 0


class Patience:
    """The pauses, in seconds, that are left for one request."""

    def __init__(self, pauses: Iterable[float]) -> None:
        self._pauses = iter(pauses)

    def wait(self, longest: float, after: float = 0.0) -> bool:
        """Sleep before the request is repeated; return False if that cannot help or was done often enough.

        `longest` and `after` are `Answer.patience` and `Answer.after`.
        """
        pause = next(self._pauses, None)
        if pause is None or not pause <= longest > 0 or after > LONGEST:
            return False
        time.sleep(max(random.uniform(pause / 2, pause), after))
        return True


def patiently(act: Callable[[], T], explain: Callable[[Exception], Answer], pauses: Iterable[float]) -> T:
    """Return the result of `act`, repeated while its error passes by itself; raise the error that stays."""
    patience = Patience(pauses)
    while True:
        try:
            return act()
        except Exception as error:
            answer = explain(error)
            if not patience.wait(answer.patience, answer.after):
                raise


class Pace(contextlib.ContextDecorator):
    """How many requests may run at once, at first half of `most`: fewer after a refusal that passes, then slowly more.

    This finds the limit of an account that other sessions use at the same time. Called with the function that sends a
    request, in any thread, it returns one that waits for its turn.
    """

    def __init__(self, most: int, explain: Callable[[Exception], Answer]) -> None:
        self._most, self._limit, self._explain = most, most / 2, explain
        self._running, self._slowed, self._turn = 0, 0.0, threading.Condition()

    def __enter__(self) -> None:
        with self._turn:
            self._turn.wait_for(lambda: self._running < int(self._limit))
            self._running += 1

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        now = time.monotonic()
        with self._turn:
            self._running -= 1
            if error is None:
                self._limit = min(self._most, self._limit + 1 / self._limit)
            elif isinstance(error, Exception) and self._explain(error).is_transient and now - self._slowed > SETTLED:
                self._slowed, self._limit = now, max(1.0, self._limit / 2)
            self._turn.notify_all()


def seconds_of(retry_after: str | None) -> float:
    """Return the seconds of a `Retry-After` header; 0 without one, or if it holds a date."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
