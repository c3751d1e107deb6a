"""What one run may do at most: calls are refused at the cap, before they are made."""

from __future__ import annotations

from typing import Any, cast

import pytest
from nodes import fitting_expectation, roots

from confide.errors import Reason, RunRefused
from confide.node.run import MAX_CALLS, Run


def test_calls_are_refused_at_the_cap() -> None:
    nobody = cast("Any", None)
    run = Run(nobody, nobody, fitting_expectation(roots()), b"n" * 32)
    for _ in range(MAX_CALLS):
        run.begin_call()
    with pytest.raises(RunRefused) as error:
        run.begin_call()
    assert error.value.reason is Reason.LIMIT_EXCEEDED
