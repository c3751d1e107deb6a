"""SLSA resource descriptors and the statements beside a training record, strictly. Pure.

Clauses: docs/protocols/training-record.md §2 and §3. Sources: SLSA Provenance v1, in-toto SCAI
v0.3, in-toto Test Result v0.1, OMS 1.0. Only what this project writes is read; believes nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.errors import Reason
from confide.inference.weights import WeightsManifest, manifest_value, weights_manifest
from confide.wire.dsse import encode_statement, parse_typed_payload
from confide.wire.json import Members, jcs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confide.wire.json import JsonValue

__all__ = [
    "BETTER",
    "HARDWARE",
    "SCAI",
    "SLSA",
    "Descriptor",
    "HardwareOfBoot",
    "TestResult",
    "about_one",
    "encode_hardware",
    "encode_test_result",
    "encode_weights",
    "metrics_commitment",
    "parse_hardware",
    "parse_test_result",
    "parse_weights",
    "read_attribute",
    "read_descriptors",
]

SLSA: Final = "https://slsa.dev/provenance/v1"
SCAI: Final = "https://in-toto.io/attestation/scai/v0.3"
_TEST: Final = "https://in-toto.io/attestation/test-result/v0.1"
_OMS: Final = "https://model_signing/signature/v1.0"
HARDWARE: Final = ("INTEL_TDX", "NVIDIA_CC")
BETTER: Final = "better-than-base"
_EVALUATED: Final = "evaluated"
_REASON = Reason.TRAINING_FORMAT
_EVALUATION: Final = b"confide/evaluation/v1\0"
# A model in shards of a few GB, and its configuration.
_MAX_FILES = 1024
_MAX_BOOTS = 16


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A ResourceDescriptor of SLSA: a name, a SHA-256, and annotations where there are any."""

    name: str
    sha256: bytes
    annotations: Mapping[str, JsonValue] = field(default_factory=dict)

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document."""
        found: dict[str, JsonValue] = {"name": self.name, "digest": {"sha256": self.sha256.hex()}}
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        return found


def read_descriptors(
    members: Members, name: str, *, max_items: int
) -> list[tuple[str, bytes, Members]]:
    """
    Read the array `name`: name, SHA-256 and annotations of each descriptor, no name twice.

    Raises `FormatError`. The caller ends the annotations; where there are none they are empty.
    """
    found: list[tuple[str, bytes, Members]] = []
    for value in members.items(name, max_items=max_items):
        item = Members(value, what=f"training record: {name}", reason=_REASON)
        digest = item.members("digest")
        annotations = Members({}, what="annotations", reason=_REASON)
        if item.has("annotations"):
            annotations = item.members("annotations")
        found.append((item.text("name", max_chars=256), digest.hexes("sha256", 32), annotations))
        digest.end()
        item.end()
    if len({each[0] for each in found}) != len(found):
        members.refuse(f"{name} holds a name twice")
    return found


@dataclass(frozen=True, slots=True)
class HardwareOfBoot:
    """What SCAI says about one boot: keyset, machine and evidence by digest, how many GPUs."""

    keyset: bytes
    machine: bytes
    evidence: bytes
    gpus: int


def encode_hardware(name: str, made: bytes, boots: Sequence[HardwareOfBoot]) -> bytes:
    """Return the SCAI statement about the output `name` with digest `made`, boots in order."""
    attributes: list[JsonValue] = []
    for number, boot in enumerate(boots):
        conditions: tuple[dict[str, JsonValue], ...] = (
            {"machine": boot.machine.hex()},
            {"gpus": boot.gpus},
        )
        attributes += [
            {
                "attribute": attribute,
                "target": Descriptor(f"boot/{number}", boot.keyset).document(),
                "conditions": condition,
                "evidence": Descriptor("evidence", boot.evidence).document(),
            }
            for attribute, condition in zip(HARDWARE, conditions, strict=True)
        ]
    return encode_statement(SCAI, ((name, made),), {"attributes": attributes})


def parse_hardware(payload: bytes, name: str) -> tuple[bytes, tuple[HardwareOfBoot, ...]]:
    """Return what `encode_hardware` was given. Raises `FormatError`; believes nothing."""
    subject, predicate = about_one(payload, SCAI, name)
    items = predicate.items("attributes", max_items=2 * _MAX_BOOTS)
    predicate.end()
    if not items or len(items) % 2:
        predicate.refuse("the attributes are not two for each boot")
    boots = []
    for number in range(len(items) // 2):
        tdx, gpu = (
            read_attribute(items[2 * number + index], HARDWARE[index], f"boot/{number}")
            for index in (0, 1)
        )
        machine, gpus = tdx[2].hexes("machine", 32), gpu[2].integer("gpus", low=1, high=16)
        tdx[2].end()
        gpu[2].end()
        if tdx[:2] != gpu[:2]:
            predicate.refuse("the two attributes of a boot differ in keyset or evidence")
        boots.append(HardwareOfBoot(tdx[0], machine, tdx[1], gpus))
    return subject, tuple(boots)


def read_attribute(value: JsonValue, name: str, target: str) -> tuple[bytes, bytes, Members]:
    """
    Read one SCAI attribute `name` of `target`: digests of target and evidence, the conditions.

    Raises `FormatError`. The caller ends the conditions.
    """
    item = Members(value, what="SCAI attribute", reason=_REASON)
    item.choice("attribute", (name,))
    found = []
    for member, called in (("target", target), ("evidence", "evidence")):
        described = item.members(member)
        described.choice("name", (called,))
        digest = described.members("digest")
        found.append(digest.hexes("sha256", 32))
        digest.end()
        described.end()
    conditions = item.members("conditions")
    item.end()
    return found[0], found[1], conditions


def encode_weights(name: str, manifest: WeightsManifest) -> bytes:
    """Return the OMS statement about the directory `name` with `manifest`."""
    root = bytes.fromhex(manifest.root_digest)
    return encode_statement(_OMS, ((name, root),), manifest_value(manifest))


def parse_weights(payload: bytes, name: str) -> WeightsManifest:
    """
    Return the manifest that an OMS statement about `name` holds. Raises `FormatError`.

    The subject has to be the root of the entries, and the predicate the one form of weights.md 1.6.
    """
    root, predicate = about_one(payload, _OMS, name)
    resources = []
    for value in predicate.items("resources", max_items=_MAX_FILES):
        item = Members(value, what="OMS resource", reason=_REASON)
        item.choice("algorithm", ("sha256",))
        resources.append((item.text("name"), item.text("digest", max_chars=64)))
        item.end()
    serialization = predicate.value("serialization")
    predicate.end()
    try:
        manifest = weights_manifest(resources)
    except ValueError:
        predicate.refuse("the resources are not those of a directory")
    said = {"serialization": serialization, "resources": [list(pair) for pair in resources]}
    true = {
        "serialization": manifest_value(manifest)["serialization"],
        "resources": [[entry.name, entry.sha256] for entry in manifest.entries],
    }
    if jcs(said) != jcs(true) or bytes.fromhex(manifest.root_digest) != root:
        predicate.refuse("the subject is not the root of the resources")
    return manifest


@dataclass(frozen=True, slots=True)
class TestResult:
    """One evaluation: model, plan (it names the rows), metrics by commitment, better than base."""

    __test__ = False

    model: bytes
    plan: bytes
    metrics: bytes
    better: bool | None = None


def encode_test_result(name: str, result: TestResult) -> bytes:
    """Return the Test Result statement about `name`; `better` None says nothing about better."""
    passed, warned = [_EVALUATED], list[str]()
    if result.better is not None:
        (passed if result.better else warned).append(BETTER)
    return encode_statement(
        _TEST,
        ((name, result.model),),
        {
            "result": "WARNED" if warned else "PASSED",
            "configuration": [
                Descriptor("plan", result.plan).document(),
                Descriptor("metrics", result.metrics).document(),
            ],
            "passedTests": [*passed],
            "warnedTests": [*warned],
            "failedTests": [],
        },
    )


def parse_test_result(payload: bytes, name: str) -> TestResult:
    """Return what `encode_test_result` was given. Raises `FormatError`; believes nothing."""
    model, predicate = about_one(payload, _TEST, name)
    configuration = read_descriptors(predicate, "configuration", max_items=2)
    passed = predicate.texts("passedTests", max_items=2)
    warned = predicate.texts("warnedTests", max_items=1)
    better = BETTER in passed if BETTER in passed + warned else None
    if len(configuration) != 2:
        predicate.refuse("the configuration is not plan and metrics")
    result = TestResult(model, configuration[0][1], configuration[1][1], better)
    # One spelling for each meaning: whatever else was written is not what we would write.
    if encode_test_result(name, result) != payload:
        predicate.refuse("not the Test Result of an evaluation")
    return result


def metrics_commitment(salt: bytes, metrics: Mapping[str, JsonValue]) -> bytes:
    """Return SHA-256("confide/evaluation/v1" ‖ 0 ‖ `salt` (32 bytes) ‖ JCS(metrics))."""
    if len(salt) != 32:
        raise ValueError("a salt has 32 bytes")
    return hashlib.sha256(_EVALUATION + salt + jcs(metrics)).digest()


def about_one(payload: bytes, predicate_type: str, name: str) -> tuple[bytes, Members]:
    """Return digest and predicate of a statement about one subject `name`, or `FormatError`."""
    _, subjects, predicate = parse_typed_payload(
        payload, predicate_types=(predicate_type,), reason=_REASON
    )
    if len(subjects) != 1 or subjects[0][0] != name:
        predicate.refuse("not about the one subject it has to be about")
    return subjects[0][1], predicate
