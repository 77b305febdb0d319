"""Switches that each turn off one rule of the protocol; the suites must then find the damage that the rule prevents."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Switch = Callable[[pytest.MonkeyPatch], None]
