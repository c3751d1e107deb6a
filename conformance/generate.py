"""`python -m conformance generate [FOLDER]`: write our own vectors anew, byte for byte the same.

Each stage offers candidates; a candidate becomes a vector when the verifier gives its reason, and
of several candidates with one reason the first does, and each that is to be kept. Whatever no stage
can show as a vector is listed in SPEC_COVERAGE.md with the test that reaches it. Everything is
SIMULATED.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from conformance.coverage import write_coverage
from conformance.runner import Case, compare, find_judge, run_case

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conformance.own.candidate import Candidate

__all__ = ["OWN", "STAGES", "generate", "write_vectors"]

OWN: Final = Path(__file__).resolve().parent / "vectors"
STAGES: Final = (
    *("tdx", "snp", "nvidia", "nras", "eventlog"),
    *("tlog", "release", "broker", "dataset"),
)


def generate(words: list[str]) -> int:
    """Write the vectors of every stage and the coverage table; return the exit status."""
    place = Path(words[0]) if words else OWN
    for stage in STAGES:
        count = write_vectors(stage, place / stage)
        print(f"{stage}: {count} vectors")
    write_coverage(place)
    return 0


def write_vectors(stage: str, folder: Path) -> int:
    """Write the vectors of `stage` into `folder`, which is emptied first; return their number."""
    module = import_module(f"conformance.own.{stage}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    document: dict[str, Any] = module.document()
    cases: list[dict[str, Any]] = []
    for candidate in _chosen(stage, document, module.candidates()):
        number = f"{len(cases) + 1:03}-{candidate.slug}"
        cases.append(_stored(folder, number, candidate))
    index = {"format": 1, "stage": stage, "simulated": True, **document, "cases": cases}
    (folder / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return len(cases)


def _chosen(
    stage: str, document: dict[str, Any], candidates: Iterator[Candidate]
) -> Iterator[Candidate]:
    """
    Yield the candidates that are accepted, the first that is refused for each reason, and the kept.

    Raises `ValueError` for a kept one that the verifier judges otherwise.
    """
    seen: set[str] = set()
    for candidate in candidates:
        reason = candidate.reason
        if reason in seen and not candidate.kept:
            continue
        if not _shows(stage, document, candidate):
            if candidate.kept:
                raise ValueError(f"{stage}: {candidate.slug} gets another verdict")
            continue
        if reason is not None:
            seen.add(reason)
        yield candidate


def _expectation(candidate: Candidate) -> dict[str, Any]:
    if candidate.reason is None:
        return {"outcome": "accept"}
    return {"outcome": "reject", "reason": [str(candidate.reason)]}


def _shows(stage: str, document: dict[str, Any], candidate: Candidate) -> bool:
    """Whether the verifier gives the candidate's verdict, and its reason as the first."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, content in candidate.files.items():
            (folder / name).write_bytes(content)
        data = {**candidate.case, **_expectation(candidate), "_index": document}
        found = run_case(Case(candidate.slug, stage, data, folder), find_judge(stage))
    expected = {**data, "expect": _expectation(candidate)}
    first = found.verdict.reason in {"", candidate.reason}
    return found.passed and first and not compare(expected, found.verdict)


def _stored(folder: Path, number: str, candidate: Candidate) -> dict[str, Any]:
    """Write the files that no earlier vector has; return the case with their names."""
    names: dict[str, str] = {}
    for name, content in candidate.files.items():
        if name in candidate.roles:
            names[name] = name
        else:
            stem, dot, ending = name.partition(".")
            digest = hashlib.sha256(content).hexdigest()[:12]
            names[name] = f"{stem}-{digest}{dot}{ending}"
        path = folder / names[name]
        if not path.exists():
            path.write_bytes(content)
    return {"id": number, **_renamed(candidate.case, names), **_expectation(candidate)}


def _renamed(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value
