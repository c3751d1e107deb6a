"""The shape of what `python -m bench --json` prints; no test looks at a time."""

from __future__ import annotations

import json

import pytest
from bench.channel import channel_rows
from bench.data import data_rows
from bench.records import record_rows
from bench.rows import absent, row
from bench.start import start_rows
from bench.streams import stream_rows
from bench.verification import verification_rows

_MEMBERS = {"name", "value", "unit", "peer", "ratio", "budget", "met"}


def test_a_row() -> None:
    found = row("what", 2.0, "ms", peer=4.0, budget="<= 3", met=True)
    assert found.ratio == 0.5
    assert set(json.loads(json.dumps(found.as_json()))) == _MEMBERS


def test_what_cannot_be_measured_is_not_met() -> None:
    assert absent("what", "ms", "why").met is None
    assert absent("what", "ms", "why").value is None


@pytest.mark.slow
def test_every_row_has_a_value() -> None:
    found = [*channel_rows(), *stream_rows(), *verification_rows(), *start_rows(), *data_rows()]
    found += record_rows()
    assert len({each.name for each in found}) == len(found)
    for each in found:
        assert each.value is not None
        assert each.value > 0
        assert (each.met is None) == (not each.budget)
