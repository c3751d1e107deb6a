"""The command-line contract: one request in, one answer out (conformance/CONTRACT.md).

`answer` is this repository's side of it; `Implementation` runs any program that keeps it over the
vectors. Requests are hostile: sizes, names and base64 are checked before anything is written, and
files live in a temporary folder that a name cannot leave.
"""

from __future__ import annotations

import base64
import binascii
import json
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from confide.errors import FormatError, Reason
from confide.wire.json import JsonLimits, parse_json
from conformance.runner import Case, UnknownStage, find_judge
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["EXITS", "EXPECTATIONS", "Implementation", "answer", "make_request"]

FORMAT: Final = 1
EXITS: Final = {"accept": 0, "reject": 10, "unsupported": 20, "malformed": 30}
# What a case says about the verdict; the program under test does not get to see it.
EXPECTATIONS: Final = frozenset(
    {
        *("outcome", "reason", "expect", "expected", "claims", "tcb_status", "relaxed", "facts"),
        *("note", "made_by", "origin", "licence", "hardware", "check", "id"),
    }
)
# Of the index document: descriptions of files, which are no input.
_DESCRIPTIONS: Final = frozenset({"files", "origins", "note", "format"})
_MAX_REQUEST: Final = JsonLimits(max_bytes=64 * 1024 * 1024, max_depth=16)
_MAX_FILES: Final = 256
_SECONDS: Final = 60


def make_request(case: Case) -> dict[str, Any]:
    """Return the request for `case`: its inputs, the defaults of its index, the files it names."""
    inputs = {
        name: value
        for name, value in case.data.items()
        if name not in EXPECTATIONS and name != "_index"
    }
    index = {
        name: value for name, value in case.data["_index"].items() if name not in _DESCRIPTIONS
    }
    names = {*_texts(inputs), *_texts(index)}
    files = {
        name: base64.b64encode((case.folder / name).read_bytes()).decode("ascii")
        for name in sorted(names)
        if len(name) <= 200 and name.isprintable() and (case.folder / name).is_file()
    }
    return {
        "format": FORMAT, "stage": case.stage, "case": inputs, "index": index, "files": files
    }  # fmt: skip


def _texts(value: object) -> Iterator[str]:
    """Yield every string in `value`: names of files are among them."""
    if isinstance(value, str):
        if value:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def answer(raw: bytes) -> tuple[dict[str, Any], int]:
    """Judge the request `raw`; return the answer and the exit status."""
    try:
        request = _parse(raw)
    except (FormatError, ValueError) as error:
        return _answer(Verdict("malformed", "request", ("request",), str(error)))
    try:
        verdict = _judge(request)
    except (UnknownStage, Unclear) as error:
        verdict = Verdict("unsupported", detail=str(error))
    except (KeyError, TypeError, ValueError, OSError) as error:
        detail = f"the case lacks or mistypes an input ({type(error).__name__}: {error})"
        verdict = Verdict("malformed", "request", ("request",), detail)
    return _answer(verdict)


def _answer(verdict: Verdict) -> tuple[dict[str, Any], int]:
    document = {
        "format": FORMAT,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "reasons": list(verdict.reasons),
        "detail": verdict.detail,
        "claims": verdict.claims,
    }
    return document, EXITS[verdict.outcome]


def _parse(raw: bytes) -> dict[str, Any]:
    request = parse_json(raw, what="request", reason=Reason.SERVICE_FORMAT, limits=_MAX_REQUEST)
    if not isinstance(request, dict) or request.keys() != {
        *("format", "stage", "case", "index", "files")
    }:
        raise ValueError("a request has format, stage, case, index and files")
    shapes = (("format", int), ("stage", str), ("case", dict), ("index", dict), ("files", dict))
    for name, kind in shapes:
        if type(request[name]) is not kind:
            raise ValueError(f"{name} has the wrong type")
    if request["format"] != FORMAT:
        raise ValueError(f"format is not {FORMAT}")
    if len(request["files"]) > _MAX_FILES:  # type: ignore[arg-type]
        raise ValueError(f"more than {_MAX_FILES} files")
    return request


def _judge(request: dict[str, Any]) -> Verdict:
    judge = find_judge(request["stage"])
    with tempfile.TemporaryDirectory() as place:
        # Cases of one stage may name files of another: "../tdx/real/quote.bin".
        top = Path(place).resolve()
        folder = top / "vectors" / request["stage"]
        folder.mkdir(parents=True)
        for name, text in request["files"].items():
            _write(top, folder, name, text)
        return judge({**request["case"], "_index": request["index"]}, folder)


def _write(top: Path, folder: Path, name: str, text: object) -> None:
    if PurePosixPath(name).is_absolute() or not name.isprintable() or not isinstance(text, str):
        raise ValueError("a file has no relative name, or no text")
    target = (folder / name).resolve()
    if not target.is_relative_to(top) or target == folder:
        raise ValueError("a file's name leaves the vectors")
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError("a file is not base64") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)


@dataclass(frozen=True, slots=True)
class Implementation:
    """A program under test: `command` gets a request on its input and prints an answer."""

    command: str

    def judge_for(self, case: Case) -> Callable[[dict[str, Any], Path], Verdict]:
        """Return what judges `case`, in the shape of a stage's own judge."""
        return lambda _data, _folder: self.judge(case)

    def judge(self, case: Case) -> Verdict:
        """Return the program's verdict on `case`, with what its claims lack as differences."""
        request = json.dumps(make_request(case)).encode()
        done = subprocess.run(  # noqa: S603 - the command is the caller's own
            shlex.split(self.command), input=request, capture_output=True, check=False,
            timeout=_SECONDS,
        )  # fmt: skip
        try:
            found = json.loads(done.stdout)
            outcome, reason, reasons = found["outcome"], found["reason"], found["reasons"]
            claims = dict(found["claims"])
        except (ValueError, KeyError, TypeError):
            return Verdict("unsupported", detail=f"exit {done.returncode}, and no answer")
        if EXITS.get(outcome) != done.returncode:
            detail = f"answered {outcome!r} and exited {done.returncode}"
            return Verdict("unsupported", detail=detail)
        return Verdict(
            outcome, reason, tuple(reasons), str(found.get("detail", "")),
            _differing(case.data.get("claims") or {}, claims), claims,
        )  # fmt: skip


def _differing(stated: dict[str, Any], claims: dict[str, Any]) -> tuple[str, ...]:
    """Compare the claims that both name: which ones a program reports is its own matter."""
    plain = {
        name.replace("_", "").replace("-", "").lower(): value for name, value in claims.items()
    }
    return tuple(
        f"{name} is {plain[key]}, not {value}"
        for name, value in stated.items()
        if (key := name.replace("_", "").lower()) in plain and plain[key] != value
    )
