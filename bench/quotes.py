"""Appraise one TDX quote again and again in this process: `python -m bench.quotes SECONDS`.

Prints `ready`, waits for a line, works for SECONDS of wall time, prints quotes a second: several of
these, started together, show how appraisal scales with processes.
"""

from __future__ import annotations

import sys
import time

from bench.verification import make_tdx

if __name__ == "__main__":
    seconds, warm = float(sys.argv[1]), make_tdx().warm
    warm()
    print("ready", flush=True)
    sys.stdin.readline()
    count, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        warm()
        count += 1
    print(count / spent)
