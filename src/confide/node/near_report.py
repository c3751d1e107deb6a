"""The attestation report of the NEAR face: direct shape, made for each request.

Clauses: docs/protocols/near-face.md §3; the shape is that of docs/protocols/near.md §1. This is the
one place where a quote is asked for over raw report data. Its first half is always computed here
from a key of this node, never taken from a request: see near-face.md §3.4 for why that suffices.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from confide.appraisal.launch import mrconfigid_form1
from confide.errors import ConfigurationError, Unavailable
from confide.node.near_keys import SigningAlgorithm
from confide.wire.ccel import parse_ccel
from confide.wire.json import is_hex
from confide.wire.rtmr_log import RUNTIME_EVENT_TYPE
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from confide.node.identity import NodeIdentity
    from confide.node.machine import Machine
    from confide.node.near_keys import NearKeyring, NearKeys
    from confide.ports import Entropy
    from confide.wire.evidence import GpuEvidence
    from confide.wire.json import JsonValue
    from confide.wire.rtmr_log import RuntimeEvent
    from confide.wire.tdx import TdBody10

__all__ = ["NearReporter", "ReportQuery", "ReportRefused", "parse_query"]

# From: near-wire.md §3.3; chips as policies name them (docs/protocols/nvidia.md §2.1).
_FAMILIES: Final = {"GH100": "HOPPER", "GB100": "BLACKWELL"}
# A quote costs the platform tens of milliseconds, a set of GPUs more.
_MAX_CONCURRENT: Final = 2
_MAX_FIELDS: Final = 16


class ReportRefused(Exception):
    """The query asks for something that is not there; `status` and words of ours."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportQuery:
    """What a report is asked for. `nonce` is None where the caller gave none."""

    algorithm: SigningAlgorithm
    nonce: bytes | None
    address: str | None
    fingerprint: bool


def parse_query(raw: bytes, *, model: str) -> ReportQuery:
    """Read the query of a report. Raises `ReportRefused`: 400, or 404 for another model."""
    try:
        found = parse_qs(
            raw.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict"
        )
    except ValueError as error:
        raise ReportRefused(400, "The query cannot be read.") from error
    if any(len(values) > 1 for values in found.values()):
        raise ReportRefused(400, "A parameter stands twice.")
    given = {name: values[0] for name, values in found.items()}
    if given.get("model", model) != model:
        raise ReportRefused(404, "This node serves another model.")
    return ReportQuery(
        algorithm=_algorithm(given.get("signing_algo", "ecdsa")),
        nonce=_nonce(given.get("nonce")),
        address=given.get("signing_address"),
        fingerprint=_flag(given.get("include_tls_fingerprint", "false")),
    )


def _algorithm(text: str) -> SigningAlgorithm:
    if text not in set(SigningAlgorithm):
        raise ReportRefused(400, "signing_algo is ecdsa or ed25519.")
    return SigningAlgorithm(text)


def _nonce(text: str | None) -> bytes | None:
    if text is None:
        return None
    if not is_hex(text.lower(), 32):
        raise ReportRefused(400, "nonce is 64 hexadecimal digits.")
    return bytes.fromhex(text)


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise ReportRefused(400, "include_tls_fingerprint is true or false.")
    return text == "true"


class NearReporter:
    """
    Makes reports. `fingerprint` is the SHA-256 of the TLS key that ends in this node, if one does.

    Raises `ConfigurationError` where the machine has nothing that a report of this shape needs.
    """

    def __init__(
        self,
        *,
        identity: NodeIdentity,
        machine: Machine,
        keyring: NearKeyring,
        model: str,
        entropy: Entropy,
        fingerprint: bytes | None,
    ) -> None:
        if machine.launch is None:
            raise ConfigurationError("the NEAR face needs --launch-document FILE")
        if machine.gpus is None:  # pragma: no cover - a model node has GPUs
            raise ConfigurationError("the NEAR face needs a GPU")
        self._identity = identity
        self._launch = _require_text(machine.launch)
        self._family = _family_of(machine.gpus.policy.chips)
        self._keyring = keyring
        self._model = model
        self._entropy = entropy
        self._fingerprint = fingerprint
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)

    async def report(self, query: ReportQuery) -> bytes:
        """
        Return a fresh report. `ReportRefused` (404) for an address that is not of this node.

        Raises `Unavailable` where the machine gives no evidence, and what the attester's
        `unchanged` raises: weights that changed have no evidence in this shape either.
        """
        keys = self._holder(query)
        nonce = self._entropy.token(32) if query.nonce is None else query.nonce
        tls = self._fingerprint if query.fingerprint else None
        async with self._slots:
            document = await self._attestation(keys, query.algorithm, nonce, tls)
        whole: dict[str, JsonValue] = {
            **document,
            "all_attestations": [document],
            "ohttp_key_config": keys.key_config.hex(),
            "ohttp_attestation": {
                "signing_algo": SigningAlgorithm.ED25519.value,
                "signing_key": keys.public_key(SigningAlgorithm.ED25519).hex(),
                "key_config": keys.key_config.hex(),
                "signature": keys.sign_key_config().hex(),
            },
        }
        return json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()

    def _holder(self, query: ReportQuery) -> NearKeys:
        if query.address is None:
            return self._keyring.current
        for known in self._keyring.known():
            if known.address(query.algorithm) == query.address.lower():
                return known
        raise ReportRefused(404, "This node does not hold that signing address.")

    async def _attestation(
        self, keys: NearKeys, algorithm: SigningAlgorithm, nonce: bytes, tls: bytes | None
    ) -> dict[str, JsonValue]:
        attester = self._identity.current.attester
        if attester.unchanged is not None:
            await attester.unchanged()
        if attester.devices is None:  # pragma: no cover - a model node has GPUs
            raise Unavailable("no devices")
        devices = await attester.devices.source.collect(nonce)
        report_data = _report_data(keys.address_bytes(algorithm), tls) + nonce
        quote, events = await attester.quotes.quote(report_data)
        body = parse_quote(quote).body
        if body.mr_config_id != mrconfigid_form1(hashlib.sha256(self._launch).digest()):
            raise Unavailable("the machine was launched with another document than it shows")
        log = _event_log(attester.quotes.firmware_log(), events)
        document: dict[str, JsonValue] = {
            "model_name": self._model,
            "signing_address": keys.address(algorithm),
            "signing_algo": algorithm.value,
            "signing_public_key": keys.public_key(algorithm).hex(),
            "request_nonce": nonce.hex(),
            "intel_quote": quote.hex(),
            "nvidia_payload": _payload(devices, self._family, nonce),
            "event_log": log,
            "info": _info(self._launch, body, log, self._model),
        }
        if tls is not None:
            document["tls_cert_fingerprint"] = tls.hex()
        return document


def _family_of(chips: frozenset[str]) -> str:
    families = {_FAMILIES.get(chip) for chip in chips}
    family = families.pop() if len(families) == 1 else None
    if family is None:
        raise ConfigurationError("the NEAR face needs a GPU policy of one family, Hopper or newer")
    return family


def _require_text(launch: bytes) -> bytes:
    try:
        launch.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError("the launch document is not UTF-8") from error
    return launch


def _report_data(address: bytes, tls: bytes | None) -> bytes:
    """Return the first half of report data (near.md §2): always a key of this node."""
    return address.ljust(32, b"\0") if tls is None else hashlib.sha256(address + tls).digest()


def _payload(devices: tuple[GpuEvidence, ...], family: str, nonce: bytes) -> str:
    listed = [
        {
            "arch": family,
            "certificate": b64encode(device.chain_pem).decode("ascii"),
            "evidence": b64encode(device.report).decode("ascii"),
            "nonce": nonce.hex(),
        }
        for device in devices
    ]
    return json.dumps({"arch": family, "nonce": nonce.hex(), "evidence_list": listed})


def _event_log(firmware: bytes, events: tuple[RuntimeEvent, ...]) -> list[JsonValue]:
    """Return both logs as one, in the form of version 1, which is all that its readers know."""
    found = [
        _entry(event.register - 1, event.event_type, event.digest, "", event.data)
        for event in parse_ccel(firmware)
        if event.extended and event.register
    ]
    for event in events:
        if event.version != 1:
            raise Unavailable("an event of RTMR3 is in a form that this protocol cannot say")
        found.append(_entry(3, RUNTIME_EVENT_TYPE, event.digest(), event.name, event.payload))
    return found


def _entry(register: int, kind: int, digest: bytes, name: str, payload: bytes) -> JsonValue:
    return {
        "imr": register,
        "event_type": kind,
        "digest": digest.hex(),
        "event": name,
        "event_payload": payload.hex(),
    }


def _info(launch: bytes, body: TdBody10, log: list[JsonValue], model: str) -> JsonValue:
    """Return the description, which nothing attests: every reader derives it again."""
    compose_hash = hashlib.sha256(launch).hexdigest()
    tcb_info: dict[str, JsonValue] = {
        "mrtd": body.mr_td.hex(),
        **{f"rtmr{at}": value.hex() for at, value in enumerate(body.rtmr)},
        "compose_hash": compose_hash,
        "app_compose": launch.decode("utf-8"),
        "event_log": log,
    }
    return {
        "app_id": compose_hash[:40],
        "app_name": model,
        "compose_hash": compose_hash,
        "key_provider_info": json.dumps({"name": "none", "id": ""}),
        "tcb_info": tcb_info,
    }
