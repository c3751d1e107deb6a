"""What a node measures into RTMR3 before the thing it names starts. docs/protocols/eventlog.md §3.

Each function extends exactly one event. `measure_gpus` appraises the devices first and refuses to
go on with any that are not accepted: keys and weights never meet a GPU that was not proven.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from confide.appraisal.binding import devices_digest
from confide.appraisal.nvidia import appraise_gpus
from confide.version import __version__
from confide.wire.json import jcs
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from confide.appraisal.nvidia_policy import NvidiaPolicy
    from confide.node.attester import Devices
    from confide.ports import QuoteSource
    from confide.trust.nvidia import NvidiaRoots
    from confide.wire.faces import FaceName
    from confide.wire.json import JsonValue
    from confide.wire.quantisation import Quantisation

__all__ = [
    "VersionOneGuest",
    "measure_faces",
    "measure_gpus",
    "measure_model",
    "measure_node",
    "measure_ready",
]


class VersionOneGuest:
    """
    A guest whose events are extended in the digest form of version 1 (eventlog.md §1.3).

    The readers of some faces know no other form.
    """

    def __init__(self, guest: QuoteSource) -> None:
        self._guest = guest

    async def quote(self, report_data: bytes) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
        """Return the guest's own quote and log."""
        return await self._guest.quote(report_data)

    async def extend(self, event: RuntimeEvent) -> None:
        """Extend RTMR3 with `event` in version 1."""
        await self._guest.extend(replace(event, version=1))

    def firmware_log(self) -> bytes:
        """Return the guest's own firmware log."""
        return self._guest.firmware_log()


async def measure_node(
    guest: QuoteSource, *, role: Literal["agent", "model"], software: bytes
) -> None:
    """Extend `confide-node`: first of all events. `software` is the SHA-256 of the package."""
    payload = {"role": role, "software": software.hex(), "version": __version__}
    await guest.extend(RuntimeEvent("confide-node", jcs(payload)))


async def measure_model(
    guest: QuoteSource,
    *,
    name: str,
    weights: bytes | None,
    loaded: bool = True,
    quantisation: Quantisation | None = None,
    held: tuple[str, bytes] | None = None,
) -> None:
    """
    Extend `confide-model` before the engine starts; `weights` None where they lie outside.

    `loaded`: the node starts the engine on exactly these weights; otherwise they lie beside an
    engine that somebody else started (weights.md §7). `held`: what keeps them in place (§8).
    """
    payload: dict[str, JsonValue] = {"name": name, "served": "upstream"}
    if weights is not None:
        payload = {
            "name": name,
            "served": "embedded" if loaded else "beside",
            "weights": weights.hex(),
        }
        if quantisation is not None:
            payload["quantisation"] = quantisation.as_json()
        if held is not None and not loaded:
            payload["held"] = {"kind": held[0], "digest": held[1].hex()}
    await guest.extend(RuntimeEvent("confide-model", jcs(payload)))


async def measure_gpus(
    guest: QuoteSource,
    devices: Devices,
    *,
    policy: NvidiaPolicy,
    roots: NvidiaRoots,
    nonce: bytes,
    now: datetime,
) -> None:
    """
    Appraise every device over a fresh `nonce` (32 bytes), then extend `confide-gpu`.

    Raises `Rejected` when a device is not accepted; nothing is extended then and the node must
    not start.
    """
    collected = await devices.source.collect(nonce)
    endorsements = await devices.references.endorsements(collected)
    accepted = appraise_gpus(
        collected, endorsements, roots=roots, policy=policy, expected_nonce=nonce, now=now
    )
    payload: JsonValue = {
        "devices": devices_digest(collected).hex(),
        "policy": accepted.policy_digest,
        "serials": [device.ueid for device in accepted.devices],
    }
    await guest.extend(RuntimeEvent("confide-gpu", jcs(payload)))


async def measure_faces(guest: QuoteSource, faces: Iterable[FaceName]) -> None:
    """Extend `confide-faces` where there are any: what else than the sealed channel is served."""
    if names := sorted(set(faces)):
        payload: JsonValue = {"faces": [name.value for name in names]}
        await guest.extend(RuntimeEvent("confide-faces", jcs(payload)))


async def measure_ready(guest: QuoteSource) -> None:
    """Extend `confide-ready`: the end of what identifies this node."""
    await guest.extend(RuntimeEvent("confide-ready", b""))
