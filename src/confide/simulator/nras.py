"""A SIMULATED NVIDIA token service: detached EATs and the key set that verifies them.

The bytes have the shape of the genuine service (docs/protocols/nras.md); issuer, key ids and
certificates say SIMULATED. A verifier accepts them only when the caller passes this issuer and this
key set on purpose. Everything derives from `seed` and `now`: equal arguments, equal bytes.

`NrasFault` names everything that can be made wrong, one thing at a time and signed again where a
broken service would have signed it; `EXPECTED` is the reason that must refuse it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from confide.crypto.ecdsa import Curve, SigningKey, derive_signing_key
from confide.crypto.issuing import CertificateTemplate, issue_certificate
from confide.simulator.nras_faults import (
    EXPECTED,
    NrasFault,
    edit_device,
    edit_header,
    edit_overall,
    edit_set,
)
from confide.wire.jose import b64url_encode
from confide.wire.json import b64encode, jcs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.appraisal.nras_policy import ReportedDevice
    from confide.crypto.x509 import Certificate

__all__ = ["EXPECTED", "SIMULATED_NRAS_ISSUER", "NrasFault", "SimulatedNras"]

SIMULATED_NRAS_ISSUER: Final = "https://nras.simulated.invalid"
_ORGANIZATION: Final = "SIMULATED hardware"
_KEYS: Final = 3
# From: docs/protocols/nras.md 8; a token lives one hour, a leaf two days.
_TOKEN_LIFE: Final = timedelta(hours=1)
_LEAF_LIFE: Final = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class _Key:
    key_id: str
    key: SigningKey
    leaf: Certificate


class SimulatedNras:
    """
    A token service of its own, with three keys of which the second signs.

    `now` is the moment of its answers. `fault` is built into every token or into the key set.
    """

    __slots__ = ("_authority", "_authority_key", "_fault", "_keys", "_now", "_seed")

    def __init__(self, seed: bytes, now: datetime, fault: NrasFault | None = None) -> None:
        self._seed = seed
        self._now = now.replace(microsecond=0)
        self._fault = fault
        day = self._now.replace(hour=0, minute=0, second=0)
        root_key = derive_signing_key(Curve.P384, seed, "nras root")
        root = issue_certificate(
            _template("SIMULATED TEST ONLY Attestation Service CA", day, years=10, is_ca=True),
            root_key.public,
            issuer=None,
            issuer_key=root_key,
        )
        self._authority_key = derive_signing_key(Curve.P384, seed, "nras intermediate")
        self._authority = issue_certificate(
            _template("SIMULATED Attestation Service Intermediate", day, years=5, is_ca=True),
            self._authority_key.public,
            issuer=root,
            issuer_key=root_key,
        )
        self._keys = tuple(self._make_key(number, day) for number in range(_KEYS))

    def _make_key(self, number: int, day: datetime) -> _Key:
        key = derive_signing_key(Curve.P384, self._seed, f"nras key {number}")
        begin = day - timedelta(days=number)
        if self._fault is NrasFault.LEAF_EXPIRED:
            begin -= timedelta(days=10)
        leaf = issue_certificate(
            CertificateTemplate(
                common_name="SIMULATED Attestation Service",
                organization=_ORGANIZATION,
                not_before=begin,
                not_after=begin + _LEAF_LIFE,
            ),
            key.public,
            issuer=self._authority,
            issuer_key=self._authority_key,
        )
        identifier = _uuid(self._seed, f"kid {number}")
        return _Key(f"nv-eat-kid-simulated-{begin:%Y%m%d}000000000-{identifier}", key, leaf)

    @property
    def authority_pin(self) -> bytes:
        """SHA-256 of the SubjectPublicKeyInfo of the intermediate, for a policy that pins it."""
        return hashlib.sha256(self._authority.public_key.spki()).digest()

    def jwks(self) -> bytes:
        """Return the key set as it is served."""
        keys = [_jwk(each, self._authority) for each in self._keys]
        return jcs({"keys": edit_set(self._fault, keys)})

    def token(
        self, devices: tuple[ReportedDevice, ...], nonce: bytes, *, version: str = "3.0"
    ) -> bytes:
        """Return the detached EAT over `devices` (all GPUs or all switches) for `nonce`."""
        signer = self._keys[1]
        tokens: dict[str, str] = {}
        for number, device in enumerate(devices):
            claims = self._device_claims(device, nonce, version)
            edit_device(self._fault, claims, devices)
            name = f"{device.kind.upper()}-{number}"
            tokens[name] = self._sign(signer, claims, overall=False)
        claims = self._overall_claims(tokens, nonce, version)
        edit_overall(self._fault, claims, tokens)
        overall = self._sign(signer, claims, overall=True)
        match self._fault:
            case NrasFault.DEVICE_REMOVED:
                tokens.pop(next(iter(tokens)))
            case NrasFault.DEVICE_ALTERED:
                tokens[next(iter(tokens))] += "AAAA"
            case NrasFault.NO_DEVICES:
                tokens = {}
            case NrasFault.MIXED_KINDS:
                tokens["SWITCH-9" if "GPU-0" in tokens else "GPU-9"] = next(iter(tokens.values()))
            case NrasFault.NOT_A_LIST:
                return jcs({"JWT": overall, "tokens": tokens})
            case _:
                pass
        return jcs([["JWT", overall], tokens])

    def _sign(self, signer: _Key, claims: Mapping[str, Any], *, overall: bool) -> str:
        header: dict[str, Any] = {"kid": signer.key_id, "alg": "ES384"}
        edit_header(self._fault, header, overall=overall)
        signing_input = f"{b64url_encode(jcs(header))}.{b64url_encode(jcs(claims))}"
        key = signer.key
        forged = (NrasFault.FORGED_OVERALL if overall else NrasFault.FORGED_DEVICE) is self._fault
        if forged:
            key = derive_signing_key(Curve.P384, self._seed, "nras forger")
        signature = key.sign(signing_input.encode("ascii"))
        if self._fault is NrasFault.ALG_NONE:
            signature = b""
        elif self._fault is NrasFault.SHORT_SIGNATURE:
            signature = signature[:64]
        return f"{signing_input}.{b64url_encode(signature)}"

    def _times(self) -> dict[str, Any]:
        issued = self._now
        if self._fault is NrasFault.EXPIRED:
            issued -= timedelta(hours=2)
        elif self._fault is NrasFault.NOT_YET_VALID:
            issued += timedelta(hours=2)
        begin = int(issued.astimezone(UTC).timestamp())
        end = begin + int(_TOKEN_LIFE.total_seconds())
        return {"iss": SIMULATED_NRAS_ISSUER, "nbf": begin, "iat": begin, "exp": end}

    def _overall_claims(
        self, tokens: Mapping[str, str], nonce: bytes, version: str
    ) -> dict[str, Any]:
        digests = {
            name: ["DIGEST", ["SHA-256", hashlib.sha256(token.encode("ascii")).hexdigest()]]
            for name, token in tokens.items()
        }
        return {
            "sub": "NVIDIA-PLATFORM-ATTESTATION",
            "x-nvidia-ver": version,
            "x-nvidia-overall-att-result": True,
            "eat_nonce": nonce.hex(),
            "submods": digests,
            "jti": _uuid(self._seed, f"overall {nonce.hex()}"),
            **self._times(),
        }

    def _device_claims(self, device: ReportedDevice, nonce: bytes, version: str) -> dict[str, Any]:
        kind = device.kind
        claims: dict[str, Any] = {
            "eat_nonce": nonce.hex(),
            "jti": _uuid(self._seed, f"{kind} {device.ueid} {nonce.hex()}"),
            "ueid": device.ueid,
            "oemid": "5703" if kind == "gpu" else None,
            "hwmodel": "GH100 A01 GSP BROM" if kind == "gpu" else "LS10 A01 FSP BROM",
            "measres": "success",
            "secboot": True,
            "dbgstat": "disabled",
            "x-nvidia-attestation-warning": None,
            **self._times(),
        }
        if kind == "gpu":
            claims["x-nvidia-gpu-driver-version"] = device.driver_version
            claims["x-nvidia-gpu-vbios-version"] = device.vbios_version.upper()
            claims["x-nvidia-gpu-vbios-index-no-conflict"] = True
            manifests: tuple[str, ...] = ("driver-rim", "vbios-rim")
        else:
            claims["x-nvidia-switch-bios-version"] = device.vbios_version.upper()
            manifests = ("bios-rim",)
        prefix = f"x-nvidia-{kind}-"
        report = ("parsed", "nonce-match", "signature-verified")
        claims |= {f"{prefix}attestation-report-{what}": True for what in report}
        claims[f"{prefix}arch-check"] = True
        for manifest in manifests:
            done = ("fetched", "schema-validated", "signature-verified", "measurements-available")
            claims |= {f"{prefix}{manifest}-{what}": True for what in done}
        if version == "2.0":
            claims[f"{prefix}attestation-report-cert-chain-validated"] = True
            claims |= {f"{prefix}{manifest}-cert-validated": True for manifest in manifests}
            return claims
        claims[f"{prefix}attestation-report-cert-chain-fwid-match"] = True
        claims |= {f"{prefix}{manifest}-version-match": True for manifest in manifests}
        for chained in ("attestation-report", *manifests):
            claims[f"{prefix}{chained}-cert-chain"] = {
                "x-nvidia-cert-status": "valid",
                "x-nvidia-cert-ocsp-status": "good",
                "x-nvidia-cert-expiration-date": "9999-12-31T23:59:59Z",
                "x-nvidia-cert-revocation-reason": None,
            }
        return claims


def _template(name: str, day: datetime, *, years: int, is_ca: bool) -> CertificateTemplate:
    return CertificateTemplate(
        common_name=name,
        organization=_ORGANIZATION,
        not_before=day - timedelta(days=365),
        not_after=day + timedelta(days=365 * years),
        is_ca=is_ca,
    )


def _jwk(each: _Key, authority: Certificate) -> dict[str, Any]:
    point = each.key.public.point
    half = len(point) // 2
    return {
        "kty": "EC",
        "crv": "P-384",
        "kid": each.key_id,
        "x": b64url_encode(point[:half]),
        "y": b64url_encode(point[half:]),
        "x5c": [b64encode(each.leaf.der), b64encode(authority.der)],
    }


def _uuid(seed: bytes, label: str) -> str:
    digest = hashlib.sha256(b"confide/simulated-uuid\0" + seed + b"\0" + label.encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-4{digest[13:16]}-8{digest[17:20]}-{digest[20:32]}"
