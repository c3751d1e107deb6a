"""Targets: tokens of a remote service, and the key sets that verify them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from confide.appraisal.nras import NrasPolicy, ReportedDevice, appraise_nras
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import Reason
from confide.simulator.nras import SIMULATED_NRAS_ISSUER, NrasFault, SimulatedNras
from confide.wire.jose import parse_compact_jws, parse_jwks
from fuzz import seeds
from fuzz.driver import Target
from fuzz.pieces import fixed

_NOW = datetime(2026, 11, 22, 8, 30, tzinfo=UTC)
_NONCE = bytes(range(32))
_GPU = ReportedDevice("gpu", "4781763792860821", "570.124.06", "96.00.9F.00.01")
_SWITCH = ReportedDevice("switch", "4781763792860822", "", "96.10.55.00.01")
_POLICY = NrasPolicy(device_count=UnsafeAny(), driver=UnsafeAny(), vbios=UnsafeAny())


@cache
def _service() -> SimulatedNras:
    return SimulatedNras(b"fuzz", _NOW)


def _appraise(token: bytes, jwks: bytes) -> None:
    appraise_nras(
        token,
        jwks=jwks,
        expected_nonce=_NONCE,
        issuer=SIMULATED_NRAS_ISSUER,
        policy=_POLICY,
        now=_NOW,
    )


def _token(raw: bytes) -> None:
    _appraise(raw, _service().jwks())


def _key_set(raw: bytes) -> None:
    _appraise(_service().token((_GPU,), _NONCE), raw)


def _compact(raw: bytes) -> None:
    jws = parse_compact_jws(raw.decode("latin-1"), what="input", reason=Reason.TOKEN_MALFORMED)
    jws.payload(what="input", reason=Reason.TOKEN_MALFORMED)
    jws.signature(what="input", reason=Reason.TOKEN_MALFORMED)


def _jwks(raw: bytes) -> None:
    parse_jwks(raw, what="input", reason=Reason.TOKEN_MALFORMED)


def _tokens() -> tuple[bytes, ...]:
    service = _service()
    negative = SimulatedNras(b"fuzz", _NOW, NrasFault.ERROR_DETAILS)
    return (
        service.token((_GPU,), _NONCE),
        service.token((_GPU,), _NONCE, version="2.0"),
        service.token((_SWITCH,), _NONCE),
        negative.token((_GPU,), _NONCE),
        *seeds.vectors("nvidia/nras/*eat.json"),
    )


_JWS = b"eyJhbGciOiJFUzM4NCIsImtpZCI6ImsifQ.e30.AAAA"

NRAS_TARGETS: tuple[Target, ...] = (
    Target("appraise-nras-token", _token, _tokens, json_values=True),
    Target("appraise-nras-keys", _key_set, lambda: (_service().jwks(),), json_values=True),
    Target("compact-jws", _compact, fixed(_JWS), tokens=(b".", b"=", b"e30", b"W10")),
    Target("jwks", _jwks, lambda: (_service().jwks(),), json_values=True),
)
