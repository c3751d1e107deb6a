"""Stage `broker`: what a key broker and a node say to each other, to a verdict.

docs/protocols/broker.md, state.md. Bytes are hex, files are named by role in `files`. By `kind`:

`request`: `files.request` (2.1). `resource`: `name` (1.1).
`tee-pubkey`: `tee_pubkey`, as it travels; where `claim` is given, also `nonce`, and the claim of a
node's statement has to be that of both (3.4).
`version`: `salt`, `value`, and the `version` that they have to give (5.5).
`broker-info`: `files.body`, `signature`, `key` (1.3).
`jwe`: `files.jwe`, `key` (a private EC key of RFC 7517). What is not for this key is
`secret-mismatch`, as at a node (5.2).
`release-receipt`: `files.receipt`, `key`, `session`, `tee_pubkey` (thumbprint), `resource`, `jwe`.
`run`: `files.transcript` (its events), `files.receipts` (a list of envelopes) and
`files.expectation`: what a run got, step receipt/14 of receipt.md §7.
`attestation`: `broker_attestation`. `state`, `lease`, `record`: `broker_state`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives.asymmetric import ec

from confide.appraisal.steps import Refused
from confide.broker.beside import secret_version
from confide.broker.info import verify_broker_info
from confide.broker.names import parse_resource
from confide.broker.receipt import verify_release
from confide.crypto.aead import OpenError
from confide.crypto.jwe import UnwrappingKey, require_usable
from confide.errors import FormatError, Reason, Rejected, RemoteProtocolError
from confide.expectation import parse_expectation
from confide.receipts.releases import verify_releases
from confide.receipts.transcript import parse_events
from confide.wire.dsse import parse_envelope
from confide.wire.jose import b64url_decode
from confide.wire.json import parse_json
from confide.wire.jwe import EcPoint, parse_jwe, parse_wrapping_key, thumbprint
from confide.wire.kbs import parse_request, runtime_claim
from conformance.stages.broker_attestation import judge_attestation
from conformance.stages.broker_inputs import Inputs, sha256
from conformance.stages.broker_state import judge_lease, judge_record, judge_state
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from confide.wire.json import JsonValue
    from confide.wire.jwe import KeyCurve

__all__ = ["judge"]

_CURVES: Final[dict[str, tuple[KeyCurve, ec.EllipticCurve]]] = {
    "P-256": ("P-256", ec.SECP256R1()),
    "P-521": ("P-521", ec.SECP521R1()),
}


def judge(case: dict[str, Any], folder: Path) -> Verdict:
    """Judge one case whose files are relative to `folder`."""
    known = _KINDS.get(str(case.get("kind")))
    if known is None:
        raise Unclear(f"no such kind: {case.get('kind')}")
    files = {role: (folder / name).read_bytes() for role, name in case.get("files", {}).items()}
    try:
        claims = known(Inputs(case, files, datetime.fromisoformat(case["now"])))
    except Rejected as refusal:
        reasons = tuple(str(finding.reason) for finding in refusal.failures)
        return Verdict("reject", reasons[0], reasons, str(refusal.failures[0]))
    except (Refused, RemoteProtocolError) as error:
        reason = str(error.reason)
        return Verdict("reject", reason, (reason,), str(error))
    except FormatError as error:
        return Verdict("malformed", error.reason, (error.reason,), error.what)
    except OpenError as error:
        reason = Reason.SECRET_MISMATCH
        return Verdict("reject", reason, (reason,), str(error))
    stated = case.get("claims", {})
    wrong = tuple(name for name, value in stated.items() if claims.get(name) != value)
    return Verdict("accept", differences=wrong, claims=claims)


def _refuse(what: str, reason: Reason, clause: str) -> FormatError:
    return FormatError(what, reason=reason, clause=f"docs/protocols/broker.md#{clause}")


def _request(given: Inputs) -> dict[str, Any]:
    request = parse_request(given.files["request"])
    return {"tee": request.tee, "hash": request.algorithm}


def _resource(given: Inputs) -> dict[str, Any]:
    name = parse_resource(given.case["name"], reason=Reason.RESOURCE_UNKNOWN)
    return {"repository": name.repository, "type": name.type, "tag": name.tag}


def _tee_pubkey(given: Inputs) -> dict[str, Any]:
    document = given.case["tee_pubkey"]
    key = parse_wrapping_key(document)
    require_usable(key)
    if "claim" in given.case:
        claim = runtime_claim(nonce=given.octets("nonce"), tee_pubkey=document)
        if claim != given.octets("claim"):
            raise _refuse("the claim of another nonce or key", Reason.CLAIM_MISMATCH, "3.4")
    return {"thumbprint": thumbprint(key).hex()}


def _version(given: Inputs) -> dict[str, Any]:
    if secret_version(given.octets("salt"), given.octets("value")) != given.octets("version"):
        raise _refuse("the version of another value", Reason.RELEASE_FORMAT, "5.5")
    return {}


def _broker_info(given: Inputs) -> dict[str, Any]:
    info = verify_broker_info(
        given.files["body"], given.octets("signature"), key=given.octets("key")
    )
    owners = {name: digest.hex() for name, digest in info.repositories.items()}
    return {"seal": info.seal.hex(), "repositories": owners, "simulated": info.simulated}


def _jwe(given: Inputs) -> dict[str, Any]:
    curve, group = _CURVES[given.case["key"]["crv"]]
    x, y, d = (
        b64url_decode(given.case["key"][name], what=name, reason=Reason.BROKER_FORMAT)
        for name in ("x", "y", "d")
    )
    private = ec.derive_private_key(int.from_bytes(d, "big"), group)
    own = UnwrappingKey(EcPoint(curve, x + y), private)
    return {"plaintext": sha256(own.open(parse_jwe(given.files["jwe"])))}


def _release_receipt(given: Inputs) -> dict[str, Any]:
    value = parse_json(given.files["receipt"], what="release receipt", reason=Reason.RECEIPT_FORMAT)
    receipt = verify_release(
        parse_envelope(value),
        key=given.octets("key"),
        session=given.octets("session"),
        tee_pubkey=given.octets("tee_pubkey"),
        resource=given.case["resource"],
        jwe=given.octets("jwe"),
    )
    return {"version": (receipt.version or b"").hex(), "release": (receipt.release or b"").hex()}


def _items(raw: bytes, reason: Reason) -> list[JsonValue]:
    value = parse_json(raw, what="list", reason=reason)
    if not isinstance(value, list):
        raise _refuse("not a list", reason, "5.1")
    return value


def _run(given: Inputs) -> dict[str, Any]:
    events = _items(given.files["transcript"], Reason.TRANSCRIPT_BROKEN)
    receipts = _items(given.files["receipts"], Reason.RECEIPT_FORMAT)
    verify_releases(
        parse_events(events),
        tuple(parse_envelope(each) for each in receipts),
        parse_expectation(given.files["expectation"]),
    )
    return {}


_KINDS: Final[dict[str, Callable[[Inputs], dict[str, Any]]]] = {
    "request": _request,
    "resource": _resource,
    "tee-pubkey": _tee_pubkey,
    "version": _version,
    "broker-info": _broker_info,
    "jwe": _jwe,
    "release-receipt": _release_receipt,
    "run": _run,
    "attestation": judge_attestation,
    "state": judge_state,
    "lease": judge_lease,
    "record": judge_record,
}
