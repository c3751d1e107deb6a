"""Run the cases of index files and compare each verdict with the expected one.

An index is the JSON of conformance/CONTRACT.md, "Index". A case passes when the outcome is the
expected one, a rejection names an expected reason, and nothing that was read differs from what the
case states. A case that ends in an exception failed, and the run goes on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "STAGES",
    "Case",
    "Index",
    "Outcome",
    "UnknownStage",
    "UnreadableIndex",
    "case_of",
    "compare",
    "find_judge",
    "read_index",
    "run_case",
]


STAGES: Final = (
    *("tdx", "snp", "nvidia", "nras", "eventlog", "dstack"),
    *("tlog", "release", "broker", "dataset"),
)
_MAX_INDEX_BYTES: Final = 64 * 1024 * 1024
_NVIDIA_KINDS: Final = frozenset({"device", "set", "rim", "rim-payload", "appraise", "ocsp"})
_LOG_FILES: Final = frozenset({"ccel", "event_log", "vm_config", "registers", "app_compose"})
# "accept-structure" and "equal" are accepted inputs; "per case" is a file of cases, accepted when
# each of them is as the file says; "malformed" is a rejection of the bytes.
_ACCEPTING: Final = ("accept", "equal", "per case")
_REFUSING: Final = frozenset({"reject", "malformed"})


class UnreadableIndex(Exception):
    """The file is not an index of the shared format."""


class UnknownStage(Exception):
    """No stage judges cases of this shape."""


@dataclass(frozen=True, slots=True)
class Index:
    """One index file: its folder, the document without the cases, and the cases."""

    path: Path
    document: dict[str, Any]
    cases: tuple[dict[str, Any], ...]

    @property
    def folder(self) -> Path:
        """The folder that the names in the cases are relative to."""
        return self.path.parent


@dataclass(frozen=True, slots=True)
class Case:
    """One case with its stage, and with the index document under `_index`."""

    id: str
    stage: str
    data: dict[str, Any]
    folder: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case, its verdict, and in words how it differs from the expected one (or nothing)."""

    case: Case
    verdict: Verdict
    difference: str

    @property
    def passed(self) -> bool:
        """Whether the verdict is the expected one."""
        return not self.difference


def read_index(path: Path) -> Index:
    """Read an index file, or `index.json` in a folder. Raises `UnreadableIndex`."""
    file = path / "index.json" if path.is_dir() else path
    try:
        if file.stat().st_size > _MAX_INDEX_BYTES:
            raise UnreadableIndex(f"{file}: more than {_MAX_INDEX_BYTES} bytes")
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnreadableIndex(f"{file}: {type(error).__name__}") from error
    cases = document.get("cases") if isinstance(document, dict) else None
    if not isinstance(cases, list) or not all(
        isinstance(case, dict) and isinstance(case.get("id"), str) for case in cases
    ):
        raise UnreadableIndex(f"{file}: no list of cases, each with an id")
    names = [case["id"] for case in cases]
    if len(set(names)) != len(names):
        raise UnreadableIndex(f"{file}: two cases have one id")
    rest = {name: value for name, value in document.items() if name != "cases"}
    return Index(file, rest, tuple(cases))


def case_of(index: Index, data: dict[str, Any], stage: str | None = None) -> Case:
    """Return one case of `index` with its stage. Raises `UnknownStage`."""
    found = stage or _stage(index, data)
    return Case(data["id"], found, {**data, "_index": index.document}, index.folder)


def _stage(index: Index, case: dict[str, Any]) -> str:
    """Recognise a case by its members; the folder's name decides only where these do not."""
    folder = index.folder.name
    found = (
        case.get("stage")
        or index.document.get("stage")
        or next((stage for stage, is_one in _SHAPES.items() if is_one(case)), None)
        # Tokens lie in the folder of the devices: their stage is never a folder's name.
        or (folder if folder != "nras" else None)
    )
    if found not in STAGES:
        raise UnknownStage(f"{case['id']}: no stage has cases of this shape")
    return str(found)


def _named(case: dict[str, Any]) -> frozenset[str]:
    """Return the roles of the files that `case` names, where it names them by role."""
    files = case.get("files")
    return frozenset(files) if isinstance(files, dict) else frozenset()


_SHAPES: Final[dict[str, Callable[[dict[str, Any]], bool]]] = {
    "tdx": lambda case: "quote" in case and "collateral" in case,
    "snp": lambda case: "report" in case and "leaf" in case,
    "nras": lambda case: case.get("kind") == "token",
    "nvidia": lambda case: case.get("kind") in _NVIDIA_KINDS and bool(_named(case)),
    "eventlog": lambda case: bool(_LOG_FILES & _named(case)),
    "dstack": lambda case: (
        isinstance(case.get("files"), list) and "expected" in case and "pointer" not in case
    ),
}


def find_judge(stage: str) -> Callable[[dict[str, Any], Path], Verdict]:
    """Return the judge of `stage`, imported only now. Raises `UnknownStage`."""
    if stage not in STAGES:
        raise UnknownStage(f"stage {stage}")
    try:
        module = import_module(f"conformance.stages.{stage}")
    except ModuleNotFoundError as error:
        if error.name != f"conformance.stages.{stage}":
            raise
        raise UnknownStage(f"stage {stage} is not built") from error
    judge: Callable[[dict[str, Any], Path], Verdict] = module.judge
    return judge


def run_case(case: Case, judge: Callable[[dict[str, Any], Path], Verdict]) -> Outcome:
    """Judge `case` and compare; whatever goes wrong is a difference."""
    try:
        verdict = judge(case.data, case.folder)
    except Unclear as error:
        verdict = Verdict("unsupported", detail=str(error))
    except Exception as error:  # noqa: BLE001 - the run goes on, and the case failed
        verdict = Verdict("unsupported", detail=f"{type(error).__name__}: {error}")
    return Outcome(case, verdict, compare(case.data, verdict))


def expected(case: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return the outcome that `case` expects and the reasons it accepts, in our spelling."""
    stated = case.get("expect", case)
    if isinstance(stated, str):
        return stated, ()
    found: list[str] = []
    for name in ("reason", "acceptable_reasons"):
        value = stated.get(name) or []
        found += [value] if isinstance(value, str) else value
    return str(stated["outcome"]), tuple(reason.replace("_", "-") for reason in found)


def compare(case: dict[str, Any], verdict: Verdict) -> str:
    """Return in words how `verdict` differs from what `case` expects, nothing where it does not."""
    outcome, reasons = expected(case)
    got = f"{verdict.outcome} {verdict.reason}".strip()
    if verdict.detail:
        got += f" ({verdict.detail})"
    if outcome.startswith(_ACCEPTING):
        if verdict.outcome != "accept":
            return f"expected {outcome}, got {got}"
    elif verdict.outcome not in _REFUSING:
        wanted = " or ".join(reasons)
        return f"expected {outcome} {wanted}, got {got}".replace(" ,", ",")
    elif reasons and not {verdict.reason, *verdict.reasons}.intersection(reasons):
        return f"expected {outcome} {' or '.join(reasons)}, got {got}"
    return "; ".join(verdict.differences)
