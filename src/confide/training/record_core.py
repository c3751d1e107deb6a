"""What every training record says, step by step or of the artefact alone: members and their form.

Clauses: docs/protocols/training-record.md §2, docs/protocols/training-image.md 4.3. Pure. A record
is parsed by its kind (`record_parse`, `image_parse`) and believed by neither.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypedDict

from confide.errors import FormatError, Reason
from confide.training.predicates import SLSA, Descriptor, read_descriptors
from confide.wire.dsse import encode_statement, parse_typed_payload
from confide.wire.keyset import format_time, parse_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from confide.training.image_recipe import ImagePlan
    from confide.training.plan import TrainingPlan
    from confide.wire.json import JsonValue, Members

__all__ = ["CoreMembers", "OpenedRecord", "RecordCore", "open_record"]

_REASON = Reason.TRAINING_FORMAT
_CLAUSE: Final = "docs/protocols/training-record.md#2"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordCore(abc.ABC):
    """
    What a training record of any kind says; believed only inside what its verifier makes.

    `software` is the node package, `sealed` what was handed to the owner (name to SHA-256),
    `outputs` what was made (name to digest), `statements` those beside it (name to digest).
    """

    job: bytes
    nonce: bytes
    keyset: bytes
    expectation: bytes
    software: bytes
    started: datetime
    finished: datetime
    plan: TrainingPlan | ImagePlan
    dataset_root: bytes
    sealed: Mapping[str, bytes]
    outputs: Mapping[str, bytes]
    statements: Mapping[str, bytes]

    @property
    @abc.abstractmethod
    def main(self) -> str:
        """The name of the output that the hardware statement is about, and that can be served."""

    @property
    def made(self) -> bytes:
        """The digest of that output; `KeyError` in a record that was not verified."""
        return self.outputs[self.main]

    @abc.abstractmethod
    def payload(self) -> bytes:
        """Return the canonical in-toto Statement."""

    def encode(
        self,
        build_type: str,
        *,
        internal: Mapping[str, JsonValue],
        dependencies: Mapping[str, bytes | None],
        first: Iterable[Descriptor],
        last: Iterable[Descriptor] = (),
    ) -> bytes:
        """
        Return the Statement of a record of `build_type`.

        `internal` and `dependencies` are those of its kind alone, `first` and `last` its
        byproducts around what was sealed and stated.
        """
        named = {
            "base": self.plan.base,
            "dataset": self.plan.dataset,
            "dataset-root": self.dataset_root,
            "software": self.software,
            "validation": self.plan.validation,
            **dependencies,
        }
        definition: dict[str, JsonValue] = {
            "buildType": build_type,
            "externalParameters": {"recipe": self.plan.recipe.hex()},
            "internalParameters": {
                "nonce": self.nonce.hex(),
                "keyset": self.keyset.hex(),
                "expectation": self.expectation.hex(),
                "plan": self.plan.digest.hex(),
                **internal,
            },
            "resolvedDependencies": [
                Descriptor(name, digest).document()
                for name, digest in sorted(named.items())
                if digest is not None
            ],
        }
        byproducts = [
            *first,
            *(Descriptor(f"sealed/{name}", self.sealed[name]) for name in sorted(self.sealed)),
            *(
                Descriptor(f"statement/{name}", self.statements[name])
                for name in sorted(self.statements)
            ),
            *last,
        ]
        details: dict[str, JsonValue] = {
            "builder": {"id": f"confide:node/sha256:{self.software.hex()}"},
            "metadata": {
                "invocationId": self.job.hex(),
                "startedOn": format_time(self.started),
                "finishedOn": format_time(self.finished),
            },
            "byproducts": [each.document() for each in byproducts],
        }
        subjects = [(name, self.outputs[name]) for name in sorted(self.outputs, reverse=True)]
        predicate = {"buildDefinition": definition, "runDetails": details}
        return encode_statement(SLSA, subjects, predicate)


class CoreMembers(TypedDict):
    """The members of `RecordCore` that are read alike in records of every kind."""

    job: bytes
    nonce: bytes
    keyset: bytes
    expectation: bytes
    software: bytes
    started: datetime
    finished: datetime
    dataset_root: bytes
    outputs: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class OpenedRecord:
    """
    A payload of the wanted kind, its members yet to be read; `finish` refuses what is left.

    `dependencies` are name to digest, `byproducts` name, digest and annotations, in order.
    """

    payload: bytes
    definition: Members
    external: Members
    internal: Members
    details: Members
    dependencies: Mapping[str, bytes]
    byproducts: tuple[tuple[str, bytes, Members], ...]
    core: CoreMembers

    def finish(self, record: RecordCore) -> None:
        """Require that `record` is all that the payload says, and its plan the one named."""
        if self.internal.hexes("plan", 32) != record.plan.digest:
            raise FormatError(
                "training record: the plan is not that of its parts",
                reason=Reason.TRAINING_PLAN,
                clause=_CLAUSE,
            )
        for members in (self.definition, self.external, self.internal, self.details):
            members.end()
        # Order, names, builder id, repeated subjects: what we would not have written so.
        if record.payload() != self.payload:
            raise FormatError(
                "training record: not the one form of what it says", reason=_REASON, clause=_CLAUSE
            )


def open_record(
    payload: bytes,
    build_type: str,
    *,
    others: Mapping[str, str],
    needed: frozenset[str],
    optional: frozenset[str],
    max_byproducts: int,
) -> OpenedRecord:
    """
    Open the payload of a training record of `build_type`.

    `others` says in words what records of other build types are. `needed` and `optional` are the
    names of dependencies. Raises `FormatError`: TRAINING_FORMAT, or TRAINING_GRANULARITY for a
    record of another kind.
    """
    _, subjects, predicate = parse_typed_payload(payload, predicate_types=(SLSA,), reason=_REASON)
    definition, details = predicate.members("buildDefinition"), predicate.members("runDetails")
    predicate.end()
    found = definition.text("buildType", max_chars=128)
    if found in others:
        raise FormatError(
            f"training record: {others[found]}",
            reason=Reason.TRAINING_GRANULARITY,
            clause="docs/protocols/training-image.md#5.1",
        )
    if found != build_type:
        definition.refuse("the build type is not that of a training record")
    external, internal = (
        definition.members(name) for name in ("externalParameters", "internalParameters")
    )
    named = _dependencies(definition, needed, optional)
    builder, metadata = details.members("builder"), details.members("metadata")
    core = CoreMembers(
        job=metadata.hexes("invocationId", 32),
        nonce=internal.hexes("nonce", 32),
        keyset=internal.hexes("keyset", 32),
        expectation=internal.hexes("expectation", 32),
        software=named["software"],
        started=parse_time(metadata.text("startedOn"), what="startedOn", reason=_REASON),
        finished=parse_time(metadata.text("finishedOn"), what="finishedOn", reason=_REASON),
        dataset_root=named["dataset-root"],
        outputs=dict(subjects),
    )
    builder.text("id")
    builder.end()
    metadata.end()
    byproducts = read_descriptors(details, "byproducts", max_items=max_byproducts)
    return OpenedRecord(
        payload, definition, external, internal, details, named, tuple(byproducts), core
    )


def _dependencies(
    definition: Members, needed: frozenset[str], optional: frozenset[str]
) -> dict[str, bytes]:
    named: dict[str, bytes] = {}
    for name, digest, notes in read_descriptors(definition, "resolvedDependencies", max_items=16):
        notes.end()
        named[name] = digest
    if named.keys() - optional != needed:
        definition.refuse("the resolved dependencies are not those of a training")
    return named
