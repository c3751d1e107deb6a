"""NVIDIA's remote attestation service (NRAS): its keys, and verdicts as tokens.

The port `TokenKeySource`. Clauses: docs/protocols/nras.md for what a token proves, and
docs/protocols/fetching.md#9: nothing of it is kept. A token is optional: devices are verified
here, and a token is one more opinion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.adapters.bounded_http import Exchange
from confide.adapters.endorsement_http import Ask, plain_url
from confide.adapters.nvidia_services import needs_of
from confide.errors import FormatError, Reason
from confide.wire.jose import parse_jwks
from confide.wire.json import JsonLimits, b64encode, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.adapters.endorsement_http import Answer, EndorsementFetcher
    from confide.wire.evidence import GpuEvidence

__all__ = ["NVIDIA_NRAS", "NrasService"]

NVIDIA_NRAS: Final = "https://nras.attestation.nvidia.com"
# From: nvidia.md §6.1: names of architectures, by the product of the device's manifest.
_ARCHITECTURES: Final = {"GH100": "HOPPER", "GB100": "BLACKWELL", "LS10": "LS10"}
_CLAIMS_VERSION: Final = "3.0"
_MAX_KEYS: Final = 1 << 20
_MAX_TOKEN: Final = 2 << 20
_ADVICE = "Check the connection to this host; without it, devices are still verified here"


class NrasService:
    """Keys and tokens from NVIDIA; `base` is for stand-ins and mirrors."""

    def __init__(self, fetcher: EndorsementFetcher, *, base: str = NVIDIA_NRAS) -> None:
        self._fetcher = fetcher
        self._base = plain_url(base, what="the URL of NVIDIA's attestation service")

    async def keys(self) -> bytes:
        """Return the key set, exactly as served. Raises `Unavailable`."""

        def read(answer: Answer) -> tuple[bytes, None]:
            reason = Reason.TOKEN_MALFORMED
            if not parse_jwks(answer.body, what="key set", reason=reason):
                raise FormatError("key set: empty", reason=reason, clause="RFC 7517 §5")
            return answer.body, None

        url = f"{self._base}/.well-known/jwks.json"
        request = Exchange(url=url, max_bytes=_MAX_KEYS)
        ask = Ask(service="NVIDIA NRAS", what="key set", advice=_ADVICE, request=request)
        return await self._fetcher.fetch(ask, read)

    async def token(self, devices: Sequence[GpuEvidence], *, nonce: bytes) -> bytes:
        """
        Ask NVIDIA to judge `devices` over `nonce` (32 bytes) and return its answer, exact bytes.

        The answer may be a negative verdict. All devices have one architecture. Raises
        `Unavailable`, and `FormatError` for devices that cannot be read.
        """
        chips = {needs_of(device).manifests[0].product for device in devices}
        kinds = {device.kind for device in devices}
        if len(chips) != 1 or len(kinds) != 1:
            raise FormatError(
                "devices: none, or of several architectures",
                reason=Reason.ARCH_MISMATCH,
                clause="nvidia.md §6.1",
            )
        kind, chip = kinds.pop(), chips.pop()
        body = jcs(
            {
                "nonce": nonce.hex(),
                "arch": _ARCHITECTURES[chip],
                "claims_version": _CLAIMS_VERSION,
                "evidence_list": [
                    {
                        "evidence": b64encode(device.report),
                        "certificate": b64encode(device.chain_pem),
                    }
                    for device in devices
                ],
            }
        )

        def read(answer: Answer) -> tuple[bytes, None]:
            _require_token(answer.body)
            return answer.body, None

        request = Exchange(
            url=f"{self._base}/v4/attest/{kind}",
            method="POST",
            body=body,
            content_type="application/json",
            max_bytes=_MAX_TOKEN,
        )
        what = f"token for {len(devices)} device(s) of {chip}"
        ask = Ask(service="NVIDIA NRAS", what=what, advice=_ADVICE, request=request)
        return await self._fetcher.fetch(ask, read)


def _require_token(raw: bytes) -> None:
    """Refuse what has not the shape of a detached EAT (nvidia.md §6.2)."""
    reason = Reason.TOKEN_MALFORMED
    value = parse_json(raw, what="token", reason=reason, limits=JsonLimits(_MAX_TOKEN, 4))
    shaped = (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], list)
        and value[0][:1] == ["JWT"]
        and isinstance(value[1], dict)
    )
    if not shaped:
        raise FormatError("token: not a detached EAT", reason=reason, clause="nvidia.md §6.2")
