"""Reading what came with an attestation, and what vendors have to say about it. Proves nothing.

Clauses: docs/protocols/broker.md 3.3 to 3.5. `broker/attested.py` judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.appraisal.binding import parse_statement
from confide.formats.trustee import FORMAT
from confide.wire.kbs import KbsRequest, parse_attestation, parse_node_evidence
from confide.wire.service import Attester, Capture, Devices, Evidence, ReportBinding, TdxPart

if TYPE_CHECKING:
    from confide.broker.session import Issued
    from confide.wire.evidence import EvidenceBundle
    from confide.wire.kbs import Attestation, NodeEvidence

__all__ = ["Presented", "read_presented"]

_SCHEME: Final = "confide/v1"


@dataclass(frozen=True, slots=True)
class Presented:
    """An attestation, read: of a node of ours, or of a guest. Exactly one is set."""

    attestation: Attestation
    node: NodeEvidence | None
    guest: Evidence | None

    def asked_about(self) -> Evidence:
        """Return the evidence as endorsements are looked up for it."""
        if self.guest is not None:
            return self.guest
        if self.node is None:
            raise RuntimeError("neither a node nor a guest")
        return _of_node(self.node.evidence)


def read_presented(raw: bytes, issued: Issued) -> Presented:
    """
    Read an attestation body.

    Raises `FormatError` for what is none, `Unsupported` for other kinds of machines,
    `EvidenceRejected` for evidence that no hardware signed.
    """
    attestation = parse_attestation(raw)
    if attestation.node is not None:
        return Presented(attestation, parse_node_evidence(attestation.node), None)
    challenge = issued.challenge
    documents = {
        "attestation": raw,
        "challenge": challenge.encode(),
        "request": KbsRequest(issued.tee, challenge.algorithm).encode(),
    }
    capture = Capture(documents=documents, format=FORMAT.name, nonce=challenge.nonce)
    return Presented(attestation, None, FORMAT.read(capture))


def _of_node(bundle: EvidenceBundle) -> Evidence:
    statement = parse_statement(bundle.statement)
    devices = None
    if bundle.devices:
        devices = Devices(devices=bundle.devices, nonce=statement.gpu_nonce)
    attester = Attester(
        name="node",
        tdx=TdxPart(quote=bundle.quote),
        binding=ReportBinding(
            scheme=_SCHEME, expected=statement.report_data, nonce=statement.nonce
        ),
        devices=devices,
    )
    return Evidence(format="confide", attesters=(attester,), nonce=statement.nonce)
