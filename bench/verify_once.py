"""Verify one receipt file in a fresh process: `python -m bench.verify_once RECEIPT ROOTS`.

Prints milliseconds from bytes to verdict, and the peak resident set in bytes.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from confide.adapters.clock import SystemClock
from confide.receipts.file import parse_receipt_file
from confide.receipts.verify import verify_receipt
from confide.trust.roots import parse_roots_file

if __name__ == "__main__":
    raw, roots = Path(sys.argv[1]).read_bytes(), parse_roots_file(Path(sys.argv[2]).read_bytes())
    now = SystemClock().now()
    start = time.perf_counter()
    verify_receipt(
        parse_receipt_file(raw), roots=roots, now=now, expectation=None, nonce=None, outputs=None
    )
    spent = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"ms": spent * 1000, "bytes": peak}))
