"""Verify one training record in a fresh process: `python -m bench.verify_record_once RECORD ROOTS`.

Prints milliseconds from bytes to verdict.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from confide.training.record_file import parse_record_file
from confide.training.record_verify import verify_record
from confide.trust.roots import parse_roots_file

if __name__ == "__main__":
    raw, roots = Path(sys.argv[1]).read_bytes(), parse_roots_file(Path(sys.argv[2]).read_bytes())
    start = time.perf_counter()
    file = parse_record_file(raw)
    verify_record(file, roots=roots, now=None, expectation=None, nonce=None, outputs={})
    print(json.dumps({"ms": (time.perf_counter() - start) * 1000}))
