"""SIMULATED Confidential Containers: what a guest sends to a key broker, in the exact shapes.

Shapes: docs/protocols/trustee.md §1 to §5. Quotes and reports end in simulated roots; SNP reports
are not signed at all and serve readers alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from confide.simulator.tdx import SimulatedLaunch
from confide.wire.json import JsonValue, b64encode, jcs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from confide.simulator.tdx import SimulatedTdxPlatform
    from confide.wire.evidence import GpuEvidence

__all__ = ["SimulatedPod", "snp_report_json"]

_TEE_PUBKEY: Final[dict[str, JsonValue]] = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ECDH-ES+A256KW",
    "x": "SIMULATED-x",
    "y": "SIMULATED-y",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedPod:
    """
    One SIMULATED guest on a simulated TDX platform.

    `init_data` are the TOML bytes that its MRCONFIGID names with SHA-384, `gpus` makes the
    evidence of its devices for a nonce of 32 bytes. `tee_pubkey` is the key it asks with; the one
    that stands here is none, and serves readers alone.
    """

    platform: SimulatedTdxPlatform
    init_data: bytes
    firmware_log: bytes = b""
    gpus: Callable[[bytes], Sequence[GpuEvidence]] | None = None
    tee_pubkey: Mapping[str, JsonValue] = field(default_factory=lambda: _TEE_PUBKEY)

    def launch(self) -> SimulatedLaunch:
        """Return the registers of this guest."""
        return SimulatedLaunch(
            mr_td=hashlib.sha384(b"SIMULATED firmware").digest(),
            rtmr=(bytes(48), bytes(48), bytes(48), bytes(48)),
            mr_config_id=hashlib.sha384(self.init_data).digest(),
        )

    def evidence(self, report_data: bytes) -> dict[str, JsonValue]:
        """Return what the TDX attester writes for `report_data`, filled with zeros to 64."""
        raw = self.platform.quote(self.launch(), report_data=report_data.ljust(64, b"\0"))
        return {
            "quote": b64encode(raw),
            "cc_eventlog": b64encode(self.firmware_log) if self.firmware_log else None,
        }

    def additional(self, nonce: bytes) -> str:
        """Return the additional evidence as the string that travels; empty without devices."""
        if self.gpus is None:
            return ""
        entries: list[JsonValue] = [
            {
                "arch": "Hopper",
                "uuid": f"GPU-SIMULATED-{index}",
                "evidence": b64encode(device.report),
                "certificate": b64encode(device.chain_pem),
            }
            for index, device in enumerate(self.gpus(nonce))
        ]
        return jcs({"nvidia": {"device_evidence_list": entries}}).decode()

    def exchange(self, challenge: bytes, *, algorithm: str = "sha384") -> dict[str, bytes]:
        """Return the documents of one exchange: request, challenge, attestation."""
        nonce = b64encode(challenge)
        runtime: dict[str, JsonValue] = {"nonce": nonce, "tee-pubkey": dict(self.tee_pubkey)}
        asked = hashlib.new(algorithm, jcs(runtime)).digest()
        additional = self.additional(asked[:32])
        bound = jcs({**runtime, "additional-evidence": additional})
        body = {
            "init-data": {"format": "toml", "body": self.init_data.decode()},
            "runtime-data": runtime,
            "tee-evidence": {
                "primary_evidence": self.evidence(hashlib.new(algorithm, bound).digest()),
                "additional_evidence": additional,
            },
        }
        extra = {"selected-hash-algorithm": algorithm}
        return {
            "attestation": jcs(body),
            "challenge": jcs({"nonce": nonce, "extra-params": extra}),
            "request": jcs({"version": "0.4.0", "tee": "tdx", "extra-params": {}}),
        }


def snp_report_json(report: bytes, *, legacy: bool = False) -> dict[str, JsonValue]:
    """
    Return 1,184 bytes as the `sev` crate writes them.

    `legacy` is the shape of releases before 5.0, which spell out reserved fields.
    """

    def number(at: int, size: int) -> int:
        return int.from_bytes(report[at : at + size], "little")

    def octets(at: int, size: int) -> list[JsonValue]:
        return list(report[at : at + size])

    def tcb(at: int) -> dict[str, JsonValue]:
        raw = report[at : at + 8]
        head: dict[str, JsonValue] = {"bootloader": raw[0], "tee": raw[1]}
        middle: dict[str, JsonValue] = {"_reserved": list(raw[2:6])} if legacy else {"fmc": None}
        return {**head, **middle, "snp": raw[6], "microcode": raw[7]}

    found: dict[str, JsonValue] = {
        "version": number(0, 4),
        "guest_svn": number(4, 4),
        "policy": number(8, 8),
        "family_id": octets(16, 16),
        "image_id": octets(32, 16),
        "vmpl": number(48, 4),
        "sig_algo": number(52, 4),
        "current_tcb": tcb(56),
        "plat_info": number(64, 8),
        "report_data": octets(80, 64),
        "measurement": octets(144, 48),
        "host_data": octets(192, 32),
        "id_key_digest": octets(224, 48),
        "author_key_digest": octets(272, 48),
        "report_id": octets(320, 32),
        "report_id_ma": octets(352, 32),
        "reported_tcb": tcb(384),
        "chip_id": octets(416, 64),
        "committed_tcb": tcb(480),
        "launch_tcb": tcb(496),
    }
    signature: dict[str, JsonValue] = {"r": octets(672, 72), "s": octets(744, 72)}
    if legacy:
        signature["_reserved"] = octets(816, 368)
        found |= {"_author_key_en": number(72, 4), "_reserved_0": number(76, 4)}
        found |= {"_reserved_1": octets(392, 24), "_reserved_4": octets(504, 168)}
        for name, at in (("current", 488), ("committed", 492)):
            for offset, part in enumerate(("build", "minor", "major")):
                found[f"{name}_{part}"] = report[at + offset]
        found |= {"_reserved_2": report[491], "_reserved_3": report[495]}
    else:
        found["key_info"] = number(72, 4)
        for name, at in (("cpuid_fam_id", 392), ("cpuid_mod_id", 393), ("cpuid_step", 394)):
            found[name] = report[at] if number(0, 4) > 2 else None
        for name, at in (("current", 488), ("committed", 492)):
            found[name] = {"build": report[at], "minor": report[at + 1], "major": report[at + 2]}
    return {**found, "signature": signature}
