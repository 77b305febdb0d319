"""Test what the refusals of Git hosts are taken for: each host's own words, as Git shows them."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import pytest

from lib.errors import CommandError
from lib.remotes import git_answers
from lib.remotes.answers import LONGEST, Answer, Patience, patiently, seconds_of
from lib.remotes.git_answers import BRIEFLY, LASTS, LONG, explain, explain_error
from lib.remotes.repository import PAUSES

WORDS = Path(__file__).with_name("git_answers.txt").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^== (.+) \| (\w+) \| (.+)\n([^=]*(?:\n(?!== ).*)*)", WORDS, re.MULTILINE)
TEXTS = {name: text for name, _, _, text in BLOCKS}
PATIENCE = {"long": LONG, "brief": BRIEFLY, "stays": LASTS, "token": LASTS}


@pytest.mark.parametrize(("name", "kind", "remedy", "text"), BLOCKS, ids=TEXTS)
def test_the_words_of_a_host_have_the_remedy_of_their_cause(name: str, kind: str, remedy: str, text: str) -> None:
    """What stays is not repeated, and what passes by itself is not blamed on the token, nor a cut line on the host."""
    answer = explain(text)
    assert remedy in answer.remedy, answer
    assert answer.what
    assert (answer.patience, answer.is_account) == (PATIENCE[kind], kind == "token")
    if answer.is_transient and "403" not in name:  # a 403 without a text may be either
        assert "GITHUB_TOKEN" not in answer.remedy


def test_every_kind_of_host_is_in_the_table() -> None:
    """The file is read as it is meant."""
    assert len(BLOCKS) == WORDS.count("\n== ") > 100
    assert all(text.strip() for text in TEXTS.values())


def test_an_unknown_refusal_is_shown_and_a_push_repeats_it_for_a_short_time() -> None:
    """Names and numbers in addresses, refs and files say nothing."""
    text = "remote: no\n ! [remote rejected] 4034295 -> kaggle-train-workflow-429 (no)\nTo https://h/rate-limit/401.git"
    answer = explain(text, BRIEFLY)
    assert (answer.what, answer.patience) == ("", BRIEFLY)
    assert "read the host's answer" in answer.remedy


# ── waiting ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses that were made, which take no time."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    random.seed(0)
    return pauses


def test_a_limit_is_waited_for_with_growing_random_pauses_up_to_three_minutes(slept: list[float]) -> None:
    """The remedies name this limit."""
    error = CommandError(TEXTS["GitHub secondary limit"])

    def refuse() -> None:
        raise error

    with pytest.raises(CommandError):
        patiently(refuse, explain_error, PAUSES)
    assert len(slept) == len(PAUSES)
    assert all(most / 2 <= pause <= most for pause, most in zip(slept, PAUSES, strict=True))
    assert sorted(PAUSES) == list(PAUSES)
    assert 150 < sum(PAUSES) <= 180
    assert "three minutes" in git_answers._LIMITED


@pytest.mark.parametrize(("name", "times"), [("DNS", 5), ("SAML", 0)])
def test_other_refusals_are_repeated_briefly_or_never(slept: list[float], name: str, times: int) -> None:
    """A refusal that stays ends at once."""
    error = CommandError(TEXTS[name])

    def refuse() -> None:
        raise error

    with pytest.raises(CommandError):
        patiently(refuse, explain_error, PAUSES)
    assert len(slept) == times


def test_what_passes_is_done(slept: list[float]) -> None:
    """The result of the first call that succeeds is returned."""
    errors = [CommandError(TEXTS["GitHub 503"])] * 3

    def act() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert patiently(act, explain_error, PAUSES) == "done"
    assert len(slept) == 3


def test_the_time_that_a_service_names_is_waited_for_unless_it_is_too_long(slept: list[float]) -> None:
    """`Retry-After` is a number of seconds."""
    assert Patience((1.0,)).wait(LONG, seconds_of("61"))
    assert slept == [61.0]
    assert not Patience((1.0,)).wait(LONG, LONGEST + 1)
    assert not Patience((0.0,)).wait(LASTS)
    assert seconds_of("Fri, 27 Nov 2026 10:00:00 GMT") == seconds_of(None) == 0
    assert Answer("", "", 1.0).is_transient
