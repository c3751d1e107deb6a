"""Every member of a training record, taken away or made something else, one at a time.

Once by somebody who holds no key; once by a node that holds genuine keys, signs and quotes what it
edited. What such a node may say without being refused is listed here, member by member, with what
finds it out instead.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from handovers import HANDED, handed
from handovers import verify as verify_handed
from image_trainings import TrainedByImage, train_image, verify_image
from runs import payload_of
from trainings import Happening, Job, Trained, resealed, train, verify

from confide.errors import FormatError, TrainingRejected
from confide.training.record_file import parse_record_file
from confide.wire.json import jcs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from confide.training.record_file import RecordFile

    Path = tuple[str | int, ...]

MOVED = Job(
    "mutated",
    turns=(Happening("paused", 2), Happening("resumed", 2), Happening("moved", 6, "other")),
)
PLAIN = Job("mutated plainly")


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """The place of every member and item of a document, containers too."""
    if path:
        yield path
    if isinstance(value, dict):
        for name in sorted(value):
            yield from leaves(value[name], (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, (*path, index))


def at(document: Any, path: Path) -> Any:
    for step in path:
        document = document[step]
    return document


def put(document: Any, path: Path, value: Any) -> None:
    at(document, path[:-1])[path[-1]] = value


def flipped(value: Any) -> Any:
    """Something of the same type and length, as far as there is."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str) and value:
        if value.endswith("Z") and value[:4].isdigit():
            return value[:-2] + ("1Z" if value[-2] != "1" else "2Z")
        return value[:-1] + ("0" if value[-1] != "0" else "1")
    return "something" if isinstance(value, str) else None


def accepted(raw: bytes) -> bool:
    try:
        verify(parse_record_file(raw))
    except (FormatError, TrainingRejected):
        return False
    return True


def mutations(path: Path, value: Any) -> Iterator[Callable[[Any], None]]:
    """What is done to one place of a document; every result is still JSON."""

    def remove(document: Any) -> None:
        del at(document, path[:-1])[path[-1]]

    yield remove
    # Of what lies deeper, no text or number may be null: the same reader reads them all.
    for other in (None, flipped(value)) if len(path) < 4 else (flipped(value),):
        if other != value:
            yield lambda document, other=other: put(document, path, other)


def survivors(document: Any, passes: Callable[[Any], bool]) -> set[Path]:
    """The places of `document` of which some mutation `passes`."""
    found = set()
    for path in leaves(document):
        for mutate in mutations(path, at(document, path)):
            edited = copy.deepcopy(document)
            mutate(edited)
            if passes(edited):
                found.add(path)
    return found


# What is not read of a file: the roots, which a verifier brings; how an event is spelled that is
# hashed from its parts; a succession, which is for who talks to the node.
UNREAD = {
    ("roots",),
    ("evidence", "after", "succession"),
    *(("evidence", "after", "tdx", "runtime_log", event, "preimage") for event in range(5)),
}


def test_no_member_of_a_file_can_be_edited_by_who_holds_no_key() -> None:
    document = json.loads(train(PLAIN).file.encode())
    assert survivors(document, lambda edited: accepted(jcs(edited))) <= UNREAD


@pytest.mark.parametrize("other", [Job("another", turns=MOVED.turns), MOVED], ids=["job", "boot"])
def test_no_part_of_a_file_can_be_taken_from_another_job_or_boot(other: Job) -> None:
    document, foreign = (json.loads(train(job).file.encode()) for job in (MOVED, other))
    parts: list[tuple[Path, Path]] = []
    if other is MOVED:
        evidence = [("evidence", "boots", 0), ("evidence", "boots", 1), ("evidence", "after")]
        parts += [(here, there) for here in evidence for there in evidence if here != there]
    else:
        parts += [(path, path) for path in leaves(document) if len(path) in (1, 2, 3)]
    for here, there in parts:
        edited = copy.deepcopy(document)
        edited["blobs"] |= foreign["blobs"]
        taken = at(foreign, there)
        if taken != at(document, here) and here[0] != "blobs":
            put(edited, here, taken)
            assert not accepted(jcs(edited)), (here, there)


# What a node may say that holds genuine keys, lies, and signs and quotes what it says: claims that
# no step of the record's verification can contradict, each with what finds it out.
CLAIMS = {
    # A replay: it is exact in this environment alone (7.10).
    "environment",
    # audit/2, owner/1, or the proof of a row (8.1).
    "dataset-root",
    # audit/1, audit/5.
    "owner-log",
    "event-chain",
    # audit/5, with the owner's log.
    "checkpoint",
    # owner/2, with the file.
    "sealed",
    # A log, from one side: record/14.
    "finishedOn",
}


def claim(document: Any, path: Path) -> str:
    """What the member at `path` is about."""
    if "byproducts" in path or "resolvedDependencies" in path:
        names = (_name(at(document, path[:end])) for end in range(len(path), 0, -1))
        return next(filter(None, names)).partition("/")[0]
    return str(path[-1] if path[-1] == "finishedOn" else path[-2])


def _name(value: Any) -> str:
    return str(value.get("name", "")) if isinstance(value, dict) else ""


def of_a_liar(
    trained: Trained | TrainedByImage, verified: Callable[[RecordFile], object]
) -> set[str]:
    """What the node of `trained` can say otherwise in its record, and be accepted."""
    document = payload_of(trained.file.record)

    def passes(edited: Any) -> bool:
        def edit(signed: dict[str, Any]) -> None:
            signed.clear()
            signed.update(edited)

        try:
            verified(resealed(trained, edit))
        except (FormatError, TrainingRejected):
            return False
        return True

    return {claim(document, path) for path in survivors(document, passes)}


def test_what_a_lying_node_can_say_in_its_record_is_known() -> None:
    assert of_a_liar(train(MOVED), verify) == CLAIMS


def test_what_a_lying_node_can_say_of_an_image_is_known() -> None:
    told = of_a_liar(train_image(), verify_image)
    assert told == {"dataset-root", "sealed", "finishedOn"}


@pytest.mark.parametrize("name", ["evaluation/tuned", "hardware", "weights/merged"])
def test_what_a_lying_node_can_say_in_a_statement_is_known(name: str) -> None:
    trained = train(PLAIN)
    document = payload_of(trained.file.statements[name])

    def passes(edited: Any) -> bool:
        try:
            verify(resealed(trained, statements={name: jcs(edited)}))
        except (FormatError, TrainingRejected):
            return False
        return True

    found = survivors(document, passes)
    # The commitment to metrics, which audit/6 opens and a replay computes again (7.14).
    configured = {("predicate", "configuration", 1, "digest", "sha256")}
    assert found == (configured if name.startswith("evaluation/") else set())


def test_what_a_lying_node_can_say_in_a_handover_is_known() -> None:
    file = handed()
    signer = train(HANDED).node.keys.signer

    def passes(edited: Any) -> bool:
        try:
            verify_handed(replace(file, envelope=signer.seal(jcs(edited))))
        except (FormatError, TrainingRejected):
            return False
        return True

    found = survivors(payload_of(file.envelope), passes)
    # A training process compares the first two with its own before any step (training-node.md 7.6);
    # the time is bounded by keys, by turns and by the clock of who takes the job up (handover/4).
    assert {path[1] for path in found} == {"environment", "planned", "at"}
