"""Evidence files of our own nodes, in the shape that all services share.

Clauses: docs/protocols/evidence.md §1 and docs/protocols/binding.md §2. `appraisal/node.py` judges
a node against an Expectation and proves more than this reader can carry: the roles and models that
RTMR3 names. The runtime log is ours: its events begin with `confide-`, it is not a dstack log, and
the scheme `confide/v1` of the binding says so.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from confide.appraisal.binding import devices_digest, parse_statement
from confide.appraisal.claim_names import ClaimName
from confide.errors import FormatError
from confide.formats.format import Format
from confide.formats.parts import only_document, optional_document, parse_object
from confide.wire.evidence import decode_evidence
from confide.wire.keyset import parse_keyset
from confide.wire.service import (
    Attester,
    Devices,
    Evidence,
    LaunchDocument,
    PresentedKey,
    Remark,
    ReportBinding,
    TdxPart,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.appraisal.binding import Statement
    from confide.wire.evidence import EvidenceBundle
    from confide.wire.keyset import Keyset
    from confide.wire.service import Capture

__all__ = ["FORMAT", "NAME", "SCHEME"]

NAME: Final = "confide"
# How to tell our report data and our runtime log from those of others.
SCHEME: Final = "confide/v1"
_CLAUSE: Final = "docs/protocols/binding.md"
_DOCUMENT, _EXPECTATION = "evidence", "expectation"
_USES: Final = {"seal": "hpke", "sign-receipt": "signing"}


def _recognise(document: bytes) -> bool:
    if b'"confide/evidence/v1"' not in document:
        return False
    try:
        value = parse_object(document, what="document")
    except FormatError:
        return False
    return value.keys() == {"evidence", "blobs"}


def _read(capture: Capture) -> Evidence:
    extra = optional_document(capture, _EXPECTATION)
    raw = (
        capture.documents[_DOCUMENT]
        if _DOCUMENT in capture.documents
        else only_document(capture, (_DOCUMENT, "report"), what="evidence file")
    )
    bundle = decode_evidence(raw)
    statement = parse_statement(bundle.statement)
    keyset = parse_keyset(bundle.keyset)
    named = keyset.digest == statement.keyset
    covers = {"statement"}
    if named:
        covers |= {_key_name(key.id) for key in keyset.keys}
    if statement.devices is not None:
        covers |= {"gpu-evidence"}
    devices = None
    if bundle.devices:
        devices = Devices(
            devices=bundle.devices,
            nonce=statement.gpu_nonce,
            endorsements=bundle.endorsements,
        )
    attester = Attester(
        name=f"{keyset.role}-node",
        tdx=TdxPart(quote=bundle.quote, collateral=bundle.collateral),
        binding=ReportBinding(
            scheme=SCHEME,
            expected=statement.report_data,
            nonce=statement.nonce,
            covers=frozenset(covers),
        ),
        keys=_keys(keyset),
        devices=devices,
        firmware_log=bundle.firmware_log,
        runtime_log=bundle.runtime_log,
        launch=LaunchDocument(kind="confide-expectation", raw=extra) if extra else None,
        remarks=(*_contradictions(bundle, statement, named=named, expectation=extra), *_REMARKS),
    )
    return Evidence(
        format=NAME,
        attesters=(attester,),
        nonce=capture.nonce,
        tls_spki_sha256=capture.tls_spki_sha256,
        limits=_LIMITS,
    )


def _key_name(number: int) -> str:
    return f"key-{number}"


def _keys(keyset: Keyset) -> tuple[PresentedKey, ...]:
    return tuple(
        PresentedKey(
            name=_key_name(key.id),
            use=_USES[key.purpose],
            algorithm=key.algorithm.lower(),
            value=key.public_key,
        )
        for key in keyset.keys
    )


def _contradictions(
    bundle: EvidenceBundle, statement: Statement, *, named: bool, expectation: bytes | None
) -> Iterator[Remark]:
    if not named:
        yield _failed(ClaimName.KEYS, "the statement names another keyset", "4")
    shown = devices_digest(bundle.devices) if bundle.devices else None
    if shown != statement.devices:
        yield _failed(ClaimName.GPU_BINDING, "the statement names other devices", "9")
    if expectation is not None and hashlib.sha256(expectation).digest() != statement.expectation:
        yield _failed(ClaimName.WORKLOAD, "the statement names another Expectation", "3")


def _failed(claim: ClaimName, text: str, step: str) -> Remark:
    return Remark(claim=claim, text=text, clause=f"{_CLAUSE}#3 (node/{step})", failed=True)


def _open(claim: ClaimName, text: str) -> Remark:
    return Remark(claim=claim, text=text, clause="docs/protocols/services.md#3")


_REMARKS: Final = (
    _open(ClaimName.TLS, "requests are sealed to attested keys; the TLS connection is not"),
    _open(ClaimName.MODEL_WEIGHTS, "RTMR3 of a node is judged against an Expectation"),
    _open(ClaimName.RESPONSE_SIGNATURE, "answers are proven by receipts, which are files apart"),
)
_LIMITS: Final = (
    "Compared with other services only. To judge a node, verify it against its Expectation.",
)

FORMAT: Final = Format(
    name=NAME, title="Evidence file of a Confide node", recognise=_recognise, read=_read
)
