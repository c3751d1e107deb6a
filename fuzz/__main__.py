"""`python -m fuzz [--seconds N] [--only NAME] [--seed N]`; exit code 1 when something broke."""

from __future__ import annotations

import argparse
import base64
import sys
import time
from pathlib import Path

# The genuine evidence comes from the same simulated nodes as in the tests.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "simulators"))

from fuzz.driver import Target, fuzz, try_input
from fuzz.targets import TARGETS

_BATCH = 25


def main() -> int:
    """Fuzz in turns until the time is over."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, in all (60)")
    parser.add_argument("--only", help="one target, or several with a comma between")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other inputs (0)")
    parser.add_argument("--replay", metavar="BASE64", help="try one input on the --only target")
    parser.add_argument("--list", action="store_true", help="name the targets")
    options = parser.parse_args()
    names = set(options.only.split(",")) if options.only else {target.name for target in TARGETS}
    if options.list:
        print("\n".join(target.name for target in TARGETS))
        return 0
    chosen = [target for target in TARGETS if target.name in names]
    if len(chosen) != len(names):
        parser.error("no target of that name; see --list")
    if options.replay:
        what = try_input(chosen[0], base64.b64decode(options.replay))
        print(what or "the invariant holds")
        return 1 if what else 0
    return _turns(chosen, seconds=options.seconds, seed=options.seed)


def _turns(chosen: list[Target], *, seconds: float, seed: int) -> int:
    end = time.monotonic() + seconds
    done = dict.fromkeys((target.name for target in chosen), 0)
    broken = 0
    while chosen and time.monotonic() < end:
        for target in tuple(chosen):
            # Targets take turns of equal time, at least one batch each.
            turn = time.monotonic() + max(1.0, seconds / (4 * len(chosen)))
            while time.monotonic() < min(turn, end):
                first = done[target.name]
                crash = fuzz(target, seed=seed, numbers=range(first, first + _BATCH))
                done[target.name] += _BATCH
                if crash is not None:
                    print(crash, "\n", flush=True)
                    broken += 1
                    chosen.remove(target)
                    break
    print(f"{sum(done.values())} inputs, {broken} target(s) broke the invariant")
    for name, count in done.items():
        print(f"  {name}: {count}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
