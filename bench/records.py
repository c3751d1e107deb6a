"""Verifying a training record of 10,000 steps, offline, over SIMULATED evidence that is byte-exact.

The record is one of the tests' (`tests/simulators`): real signatures, real evidence, no training.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench.rows import Row, row
from trainings import Job, train

from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Iterator

_STEPS = 10_000
_REPEATS = 5


def record_rows() -> Iterator[Row]:
    """Yield rows for one record: time in a fresh process, best of five, and sizes."""
    file = train(Job("bench", steps=_STEPS, planned=_STEPS, every=1)).file
    with tempfile.TemporaryDirectory() as folder:
        record, roots = Path(folder, "record"), Path(folder, "roots")
        record.write_bytes(file.encode())
        roots.write_bytes(file.roots)
        words = [sys.executable, "-m", "bench.verify_record_once", str(record), str(roots)]
        told = [
            json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
            for _ in range(_REPEATS)
        ]
    spent = min(float(each["ms"]) for each in told)
    signed, whole = len(jcs(file.signed())) / 1000, len(file.encode()) / 1000
    name = f"training record of {_STEPS:,} steps"
    verified = f"verify a {name} offline, fresh process"
    yield row(verified, spent, "ms", budget="<= 300", met=spent <= 300)
    yield row(f"{name}: what the node signed", signed, "kB", budget="<= 100", met=signed <= 100)
    yield row(f"{name}: the file, with evidence and endorsements", whole, "kB")
