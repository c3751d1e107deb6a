"""Steps 1 to 3 of docs/protocols/nras.md: the shape of the document, its keys, its signatures.

Nothing inside a payload is read here. The key set is hostile, too: what makes a key NVIDIA's is
how the set was fetched, or an intermediate that the policy pins.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from typing import TYPE_CHECKING, Final

from confide.appraisal.nras_state import NrasState, ServiceKey
from confide.appraisal.steps import Refused, Step, established
from confide.crypto.ecdsa import Curve, load_public_key, verify
from confide.crypto.errors import BadSignature
from confide.crypto.x509 import Certificate, parse_certificate_der, verify_issued_by
from confide.errors import Reason
from confide.wire.jose import parse_compact_jws, parse_jwks
from confide.wire.json import JsonLimits, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.wire.jose import CompactJws, Jwk

__all__ = ["SERVICE_STEPS", "SHAPE_STEP"]

_DOC: Final = "docs/protocols/nras.md"
# From: docs/protocols/nras.md 1.
_LIMITS: Final = JsonLimits(max_bytes=1024 * 1024, max_depth=4)
_MAX_DEVICES: Final = 16
_NAME: Final = re.compile(r"(GPU|SWITCH)-(?:0|[1-9][0-9]?)\Z")
# From: docs/protocols/nras.md 2a, RFC 7518 §3.4.
_ALGORITHM: Final = "ES384"
_SIGNATURE_BYTES: Final = 96


def _require_shape(state: NrasState) -> str:
    """1: a detached EAT."""
    value = parse_json(state.raw, what="token", reason=Reason.TOKEN_MALFORMED, limits=_LIMITS)
    match value:
        case [["JWT", str(overall)], dict(devices)]:
            pass
        case _:
            raise Refused(Reason.TOKEN_MALFORMED, "not a detached EAT")
    if len(devices) > _MAX_DEVICES:
        raise Refused(Reason.TOKEN_MALFORMED, f"{len(devices)} devices, at most {_MAX_DEVICES}")
    state.overall = parse_compact_jws(overall, what="overall token", reason=Reason.TOKEN_MALFORMED)
    kinds: set[str] = set()
    for number, (name, text) in enumerate(devices.items()):
        named = _NAME.match(name)
        if named is None or not isinstance(text, str):
            raise Refused(Reason.TOKEN_MALFORMED, f"device {number} has no name or no token")
        kinds.add(named.group(1))
        state.tokens[name] = parse_compact_jws(
            text, what=f"token of {name}", reason=Reason.TOKEN_MALFORMED
        )
    if len(kinds) > 1:
        raise Refused(Reason.TOKEN_MALFORMED, "GPUs and switches in one token")
    return f"{len(devices)} device token(s)"


def _all_tokens(state: NrasState) -> Iterator[tuple[str, CompactJws]]:
    yield "the overall token", established(state.overall)
    for name, token in state.tokens.items():
        yield f"the token of {name}", token


def _require_algorithm(state: NrasState) -> str:
    """2a: ES384, whatever else a library could verify."""
    for what, token in _all_tokens(state):
        if token.algorithm != _ALGORITHM:
            raise Refused(Reason.TOKEN_ALG, f"{what} is not signed with {_ALGORITHM}")
    return _ALGORITHM


def _require_keys(state: NrasState) -> str:
    """2b: the keys are in the set, on P-384, and their certificates agree."""
    if state.jwks is None:
        raise Refused(Reason.TOKEN_KID_UNKNOWN, "no key set was supplied")
    keys = parse_jwks(state.jwks, what="key set", reason=Reason.TOKEN_KID_UNKNOWN)
    by_id = {key.key_id: key for key in keys}
    for what, token in _all_tokens(state):
        found = by_id.get(token.key_id)
        if found is None:
            raise Refused(
                Reason.TOKEN_KID_UNKNOWN, f"the key of {what} is not among {len(keys)} keys"
            )
        if token.key_id not in state.keys:
            state.keys[token.key_id] = _service_key(found)
    state.pinned = _require_pinned(state)
    trust = "an issuer is pinned" if state.pinned else "trusted as fetched: no root is published"
    return f"{len(state.keys)} key(s), {trust}"


def _service_key(key: Jwk) -> ServiceKey:
    if key.kind != "EC" or key.curve != Curve.P384.value or key.point is None:
        raise Refused(Reason.TOKEN_ALG, "the key is not on P-384")
    public = load_public_key(
        Curve.P384, key.point, what="key of the set", reason=Reason.TOKEN_SIGNATURE_INVALID
    )
    chain = tuple(
        parse_certificate_der(der, what=f"x5c[{at}]", reason=Reason.TOKEN_SIGNATURE_INVALID)
        for at, der in enumerate(key.certificates)
    )
    if chain and chain[0].public_key != public:
        raise Refused(Reason.TOKEN_SIGNATURE_INVALID, "x5c is about another key")
    for child, issuer in itertools.pairwise(chain):
        _require_issued(child, issuer)
    return ServiceKey(public, chain)


def _require_issued(child: Certificate, issuer: Certificate) -> None:
    if not issuer.is_ca or "key_cert_sign" not in issuer.key_usage:
        raise Refused(Reason.TOKEN_SIGNATURE_INVALID, "x5c holds an issuer that is no CA")
    try:
        verify_issued_by(child, issuer)
    except BadSignature as error:
        raise Refused(Reason.TOKEN_SIGNATURE_INVALID, f"x5c: {error.what}") from error


def _require_pinned(state: NrasState) -> bool:
    """Whether every key has a pinned issuer; refused where the policy pins and it has none."""
    pins = state.policy.pinned_authorities
    if not pins:
        return False
    for key in state.keys.values():
        issuers = {
            hashlib.sha256(issuer.public_key.spki()).digest() for issuer in key.certificates[1:]
        }
        if not issuers & pins:
            raise Refused(
                Reason.TOKEN_SIGNATURE_INVALID, "no pinned authority issued the key's certificate"
            )
    return True


def _require_signed(state: NrasState, what: str, token: CompactJws) -> None:
    key = state.keys[token.key_id]
    try:
        signature = token.signature(what=what, reason=Reason.TOKEN_SIGNATURE_INVALID)
        if len(signature) != _SIGNATURE_BYTES:
            raise Refused(
                Reason.TOKEN_SIGNATURE_INVALID, f"{what}: {len(signature)} bytes are no signature"
            )
        verify(key.public, signature, token.signing_input)
    except BadSignature as error:
        raise Refused(Reason.TOKEN_SIGNATURE_INVALID, f"{what}: {error.what}") from error


def _require_overall_signature(state: NrasState) -> None:
    """3a: the service signed the overall token."""
    _require_signed(state, "the overall token", established(state.overall))


def _require_device_signatures(state: NrasState) -> str:
    """3b: the service signed every device token."""
    for name, token in state.tokens.items():
        _require_signed(state, f"the token of {name}", token)
    return f"{len(state.tokens)} device token(s)"


SHAPE_STEP: Step[NrasState] = Step("nras/1", f"{_DOC}#1", _require_shape)
SERVICE_STEPS: tuple[Step[NrasState], ...] = (
    SHAPE_STEP,
    Step("nras/2a", f"{_DOC}#2", _require_algorithm, needs=("nras/1",)),
    Step("nras/2b", f"{_DOC}#2", _require_keys, needs=("nras/1",)),
    Step("nras/3a", f"{_DOC}#3", _require_overall_signature, needs=("nras/2a", "nras/2b")),
    Step("nras/3b", f"{_DOC}#3", _require_device_signatures, needs=("nras/2a", "nras/2b")),
)
