"""`python -m conformance INDEX...`, `... check` and `... generate` (conformance/CONTRACT.md)."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from conformance.contract import Implementation, answer
from conformance.runner import (
    STAGES,
    UnknownStage,
    UnreadableIndex,
    case_of,
    find_judge,
    read_index,
    run_case,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.runner import Outcome

FAILED, UNKNOWN, UNREADABLE = 10, 20, 30


def _outcomes(given: argparse.Namespace, problems: list[tuple[int, str]]) -> Iterator[Outcome]:
    program = Implementation(given.implementation) if given.implementation else None
    for path in given.index:
        try:
            index = read_index(path)
        except UnreadableIndex as error:
            problems.append((UNREADABLE, str(error)))
            continue
        for data in index.cases:
            if given.case and data["id"] not in given.case:
                continue
            try:
                case = case_of(index, data, given.stage)
                judge = program.judge_for(case) if program else find_judge(case.stage)
            except UnknownStage as error:
                problems.append((UNKNOWN, f"{path}: {error}"))
                continue
            yield run_case(case, judge)


def _line(outcome: Outcome) -> str:
    one_line = " ".join(outcome.difference.split())
    return f"{outcome.case.id}: {one_line}"


def _as_json(outcome: Outcome) -> str:
    verdict = outcome.verdict
    return json.dumps(
        {
            "id": outcome.case.id,
            "stage": outcome.case.stage,
            "passed": outcome.passed,
            "difference": outcome.difference,
            "outcome": verdict.outcome,
            "reason": verdict.reason,
            "reasons": list(verdict.reasons),
            "detail": verdict.detail,
        }
    )


def run(given: argparse.Namespace) -> int:
    """Run the indexes; print one line for each difference and the sum."""
    problems: list[tuple[int, str]] = []
    counts: Counter[bool] = Counter()
    for outcome in _outcomes(given, problems):
        counts[outcome.passed] += 1
        if given.json:
            print(_as_json(outcome), flush=True)
        elif not outcome.passed:
            print(_line(outcome), flush=True)
    for problem in dict.fromkeys(problems):
        print(problem[1], file=sys.stderr)
    print(f"{counts[True]} passed, {counts[False]} failed")
    worst = max((status for status, _ in problems), default=0)
    if not counts and not worst:
        # An index without a case, or a name that no case has: nothing was shown.
        print("no case was run", file=sys.stderr)
        return UNREADABLE
    return worst or (FAILED if counts[False] else 0)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="conformance",
        description="Run index files of vectors. Two words have a meaning of their own: `check` "
        "judges one request from standard input, `generate` writes our own vectors anew.",
    )
    parser.add_argument("index", nargs="+", type=Path, help="an index file, or a folder with one")
    parser.add_argument("--json", action="store_true", help="one JSON object for each case")
    parser.add_argument("--stage", choices=STAGES, help="the stage, instead of recognising it")
    parser.add_argument("--case", action="append", help="run only this case (repeatable)")
    parser.add_argument(
        "--implementation", metavar="COMMAND", help="judge through another program's `check`"
    )
    return parser


def main(words: list[str]) -> int:
    """Run one of the three; return the exit status."""
    # Genuine certificates of AMD have the serial number 0, which the library warns about.
    warnings.simplefilter("ignore")
    if words == ["check"]:
        document, status = answer(sys.stdin.buffer.read())
        print(json.dumps(document))
        return status
    if words[:1] == ["generate"]:
        from conformance.generate import generate  # noqa: PLC0415 - needs the simulator

        return generate(words[1:])
    return run(_arguments().parse_args(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
