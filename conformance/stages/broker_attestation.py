"""Stage `broker`, kind `attestation`: the body of 3.1 in its session, steps broker/1 to broker/8.

Members: `files.attestation`; `files.roots`, a roots file (evidence.md §3); `files.collateral`, what
the TDX vendor told the broker, where it told anything; `challenge` (the nonce of the session),
`hash`, `tee`, `asked` (when the challenge was drawn), `spent` (an attestation was accepted for it).
`set` changes members of the body, each named by a pointer of RFC 6901; what is judged then is its
RFC 8785 form. No name in a body needs an escape.
Whether this is of a node of ours or of a guest says the body.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from confide.broker.attested import Asked
from confide.broker.session import Challenges, Issued
from confide.errors import Reason, Unsupported
from confide.node.broker_evidence import read_presented
from confide.trust.roots import parse_roots_file
from confide.wire.endorsements import Endorsements
from confide.wire.json import JsonLimits, JsonValue, jcs, parse_json
from confide.wire.jwe import thumbprint
from confide.wire.kbs import MAX_ATTESTATION_BYTES, KbsChallenge
from conformance.stages.broker_inputs import sha256
from conformance.verdict import Unclear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conformance.stages.broker_inputs import Inputs

__all__ = ["judge_attestation"]

_LIMITS: Final = JsonLimits(max_bytes=MAX_ATTESTATION_BYTES, max_depth=32)


def judge_attestation(given: Inputs) -> dict[str, Any]:
    """Return who is attested. Raises `Rejected` or `FormatError`."""
    case, files = given.case, given.files
    challenge = KbsChallenge(given.octets("challenge"), case["hash"])
    issued = Issued(challenge, case["tee"], datetime.fromisoformat(case["asked"]))
    # The key of the cookies' MAC is the process's own and enters nothing here.
    Challenges(bytes(32)).require_fresh(issued, now=given.now)
    body = _edited(files["attestation"], case.get("set", {}))
    try:
        shown = read_presented(body, issued)
    except Unsupported as error:
        raise Unclear(str(error)) from error
    asked = Asked(
        shown.attestation,
        challenge,
        issued.tee,
        spent=case["spent"],
        roots=parse_roots_file(files["roots"]),
        now=given.now,
    )
    own = Endorsements(tdx=(files["collateral"],)) if "collateral" in files else Endorsements()
    session = {
        "session": issued.session.hex(),
        "evidence": sha256(body),
        "tee_pubkey": thumbprint(shown.attestation.key).hex(),
    }
    if shown.node is None:
        if shown.guest is None:
            raise Unclear("neither a node nor a guest")
        asked.prove_guest(shown.guest, own=own)
        return {**session, "role": "guest"}
    proof = asked.prove_node(shown.node, own=own)
    run = None if proof.run is None else proof.run.hex()
    return {
        **session, "role": proof.role, "expectation": proof.expectation.digest.hex(), "run": run
    }  # fmt: skip


def _edited(body: bytes, members: Mapping[str, JsonValue]) -> bytes:
    if not members:
        return body
    document = parse_json(body, what="attestation", reason=Reason.BROKER_FORMAT, limits=_LIMITS)
    for pointer, value in members.items():
        *path, last = pointer.removeprefix("/").split("/")
        place: Any = document
        for name in path:
            place = place[name]
        place[last] = value
    return jcs(document)
