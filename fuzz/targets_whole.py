"""Targets: whole verifiers, on evidence and receipts of simulated nodes with hostile parts.

Their input is a JSON document with one member for each part, large parts as base64, so that
mutation reaches every part without breaking the digests that the file formats put around them.
"""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import nodes
import runs

from confide.appraisal.node import appraise_node
from confide.errors import FormatError, Reason
from confide.expectation import parse_expectation
from confide.receipts.verify import verify_receipt
from confide.wire.dsse import Envelope
from confide.wire.evidence import (
    EvidenceBundle,
    GpuEvidence,
    NvidiaEndorsements,
    OcspAnswer,
    RimDocument,
)
from confide.wire.json import jcs, parse_json
from fuzz import seeds
from fuzz.driver import Target

if TYPE_CHECKING:
    from confide.appraisal.node import VerifiedNode
    from confide.receipts.file import ReceiptFile
    from confide.receipts.verify import VerifiedRun
    from confide.trust.roots import Roots


def _world() -> runs.World:
    # Named as `runs.tell` names it: the nodes on which the genuine receipt was made.
    return runs.world(b"boot")


@cache
def _roots() -> Roots:
    return nodes.roots()


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _describe(bundle: EvidenceBundle) -> dict[str, Any]:
    return {
        "statement": bundle.statement,
        "keyset": bundle.keyset,
        "succession": bundle.succession,
        "quote": _b64(bundle.quote),
        "collateral": _b64(bundle.collateral),
        "firmware_log": _b64(bundle.firmware_log),
        "runtime_log": bundle.runtime_log,
        "devices": [[_b64(gpu.report), _b64(gpu.chain_pem)] for gpu in bundle.devices],
        "rims": {rim.id: _b64(rim.xml) for rim in bundle.endorsements.rims},
        "ocsp": {item.certificate_sha256: _b64(item.der) for item in bundle.endorsements.ocsp},
    }


def _refuse() -> FormatError:
    return FormatError("fuzz: not a description", reason=Reason.EVIDENCE_MISSING, clause="fuzz")


def _raw(text: object) -> bytes:
    if not isinstance(text, str):
        raise _refuse()
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise _refuse() from error


def _bundle(value: Any) -> EvidenceBundle:
    if not isinstance(value, dict):
        raise _refuse()
    try:
        return EvidenceBundle(
            value["statement"],
            value["keyset"],
            _raw(value["quote"]),
            _raw(value["collateral"]),
            _raw(value["firmware_log"]),
            value["runtime_log"],
            tuple(GpuEvidence(_raw(item[0]), _raw(item[1])) for item in value["devices"]),
            NvidiaEndorsements(
                tuple(RimDocument(name, _raw(xml)) for name, xml in value["rims"].items()),
                tuple(OcspAnswer(name, _raw(der)) for name, der in value["ocsp"].items()),
            ),
            value["succession"],
        )
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise _refuse() from error


def _parse(raw: bytes) -> Any:
    return parse_json(raw, what="input", reason=Reason.EVIDENCE_MISSING)


def _appraise(role: Any, bundle: EvidenceBundle, expectation: bytes) -> VerifiedNode:
    statement = seeds.receipt()
    genuine = statement.agent_before if role == "agent" else seeds.model()
    nonce = bytes.fromhex(genuine.statement["nonce"])  # type: ignore[index, call-overload, arg-type]
    return appraise_node(
        bundle,
        subject=f"{role}-node",
        role=role,
        purpose="channel",
        nonce=nonce,
        claim=None,
        expectation=parse_expectation(expectation),
        roots=_roots(),
        now=nodes.NOW,
    )


def _agent_node(raw: bytes) -> VerifiedNode:
    return _appraise("agent", _bundle(_parse(raw)), seeds.expectation())


def _model_node(raw: bytes) -> VerifiedNode:
    return _appraise("model", _bundle(_parse(raw)), seeds.expectation())


def _other_expectation(raw: bytes) -> VerifiedNode:
    """Genuine evidence under a hostile Expectation."""
    return _appraise("model", seeds.model(), raw)


def _verify(file: ReceiptFile) -> VerifiedRun:
    return verify_receipt(
        file, roots=_roots(), now=nodes.NOW, expectation=None, nonce=None, outputs=None
    )


def _describe_envelope(envelope: Envelope) -> list[Any]:
    return [_b64(envelope.payload), [[keyid, _b64(sig)] for keyid, sig in envelope.signatures]]


def _envelope(value: Any) -> Envelope:
    try:
        return Envelope(_raw(value[0]), tuple((str(item[0]), _raw(item[1])) for item in value[1]))
    except (KeyError, TypeError, IndexError) as error:
        raise _refuse() from error


_PLACES = ("agent_before", "agent_after", "model_before", "model_after")


def _receipt_seeds() -> tuple[bytes, ...]:
    file = seeds.receipt()
    described: dict[str, Any] = {
        "expectation": _b64(file.expectation),
        "run": _describe_envelope(file.run),
        "inferences": [_describe_envelope(item) for item in file.inferences],
    }
    for place in _PLACES:
        bundle = getattr(file, place)
        described[place] = None if bundle is None else _describe(bundle)
    return (jcs(described),)


def _receipt(raw: bytes) -> VerifiedRun:
    value = _parse(raw)
    file = seeds.receipt()
    try:
        changed: dict[str, Any] = {
            "expectation": _raw(value["expectation"]),
            "run": _envelope(value["run"]),
            "inferences": tuple(_envelope(item) for item in value["inferences"]),
        }
        for place in _PLACES:
            absent = value[place] is None and place.startswith("model")
            changed[place] = None if absent else _bundle(value[place])
    except (KeyError, TypeError) as error:
        raise _refuse() from error
    return _verify(replace(file, **changed))


def _dishonest_agent(raw: bytes) -> VerifiedRun:
    """A dishonest agent node signs and quotes whatever `raw` is as its receipt."""
    place, file = _world(), seeds.receipt()
    run = place.agent.keys.signer.seal(raw)
    nonce = runs.sha("owner's nonce", "first")
    after = asyncio.run(place.agent.attest("claim", nonce, place.expectation.digest, run.digest))
    return _verify(replace(file, run=run, agent_after=after))


def _dishonest_model(raw: bytes) -> VerifiedRun:
    """A dishonest model node signs whatever `raw` is as the receipt of the first call."""
    file = seeds.receipt()
    first = _world().model.keys.signer.seal(raw)
    document = runs.payload_of(file.run)
    calls = [e for e in document["predicate"]["transcript"] if e["kind"] == "model-call"]
    calls[0]["receipt"] = first.digest.hex()
    runs.rehash(document)
    run = _world().agent.keys.signer.seal(jcs(document))
    place = _world()
    nonce = runs.sha("owner's nonce", "first")
    after = asyncio.run(place.agent.attest("claim", nonce, place.expectation.digest, run.digest))
    changed = replace(file, run=run, inferences=(first, *file.inferences[1:]), agent_after=after)
    return _verify(changed)


WHOLE_TARGETS: tuple[Target, ...] = (
    Target(
        "appraise-agent-node",
        _agent_node,
        lambda: (jcs(_describe(seeds.agent())),),
        json_values=True,
    ),
    Target(
        "appraise-model-node",
        _model_node,
        lambda: (jcs(_describe(seeds.model())),),
        json_values=True,
    ),
    Target(
        "appraise-expectation",
        _other_expectation,
        lambda: (seeds.expectation(),),
        json_values=True,
    ),
    Target("verify-receipt", _receipt, _receipt_seeds, json_values=True),
    Target(
        "verify-dishonest-agent",
        _dishonest_agent,
        lambda: (seeds.receipt().run.payload,),
        json_values=True,
    ),
    Target(
        "verify-dishonest-model",
        _dishonest_model,
        lambda: tuple(item.payload for item in seeds.receipt().inferences),
        json_values=True,
    ),
)
