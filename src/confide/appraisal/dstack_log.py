"""What dstack measured into RTMR3 before the machine was ready: the profile of its log.

Clauses: docs/protocols/eventlog.md §5. Input are entries whose replay matched a verified quote;
only then do they mean anything. The names that carry identity stand once, in order, complete,
before `system-ready`. Whatever an application appends later never counts as identity.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from confide.appraisal.steps import Refused
from confide.errors import FormatError, Reason
from confide.wire.json import Members, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from confide.wire.rtmr_log import LogEntry

__all__ = [
    "DstackEvents",
    "KeyProvider",
    "begins_with_dstack",
    "profile_faults",
    "read_dstack_events",
]

_CLAUSE: Final = "docs/protocols/eventlog.md#5"
# From: docs/protocols/eventlog.md §5.1. The order in which the guest measures.
_ORDER: Final = (
    "system-preparing",
    "app-id",
    "compose-hash",
    "init-script-hash",
    "gpu-policy-hash",
    "gpu-attestation",
    "instance-id",
    "boot-mr-done",
    "mr-kms",
    "os-image-hash",
    "key-provider",
    "storage-fs",
    "system-ready",
)
_RANK: Final = {name: rank for rank, name in enumerate(_ORDER)}
_REQUIRED: Final = ("app-id", "compose-hash", "system-ready")
_REPEATED: Final = "init-script-hash"
_READY: Final = "system-ready"
# From: docs/protocols/eventlog.md §5.3: permitted sizes of payloads.
_SIZES: Final[dict[str, tuple[int, ...]]] = {
    "system-preparing": (0,),
    "app-id": (20,),
    "compose-hash": (32,),
    "init-script-hash": (32,),
    "gpu-policy-hash": (32,),
    # Empty where the app asks for no instance identity.
    "instance-id": (0, 20),
    "boot-mr-done": (0,),
    "os-image-hash": (32,),
    "system-ready": (0,),
}
_MAX_TEXT: Final = 64


@dataclass(frozen=True, slots=True)
class KeyProvider:
    """
    Who gives the app its keys: `name` (kms, local-sgx, tpm, none) and the provider's id.

    `raw` is the exact payload, which enters `mr_system`; it does not take part in comparisons.
    """

    name: str
    id: bytes
    raw: bytes = field(default=b"", compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DstackEvents:
    """
    What the guest measured before it was ready; None and empty where the event does not occur.

    `app_id` has 20 bytes and may have been chosen by the operator: gate `compose_hash`.
    `os_image_hash` is what the key server said, not a measurement. `gpu_attestation` is the exact
    payload (JSON). `after_ready` names what applications appended later, and proves nothing.
    """

    app_id: bytes
    compose_hash: bytes
    init_script_hashes: tuple[bytes, ...]
    gpu_policy_hash: bytes | None
    gpu_attestation: bytes | None
    instance_id: bytes
    mr_kms: bytes | None
    os_image_hash: bytes | None
    key_provider: KeyProvider | None
    storage_fs: str
    after_ready: tuple[str, ...]

    @property
    def gpu_evidence_sha256(self) -> bytes | None:
        """
        The SHA-256 of the boot-time GPU record that was measured; None where none was.

        Historical: it binds the record of that boot, not a device that is there now. Raises
        `FormatError` where the payload is not the JSON object it should be.
        """
        if self.gpu_attestation is None:
            return None
        value = parse_json(
            self.gpu_attestation, what="gpu-attestation payload", reason=Reason.LOG_FORMAT
        )
        members = Members(value, what="gpu-attestation payload", reason=Reason.LOG_FORMAT)
        return members.hexes("evidence_sha256", 32) if members.has("evidence_sha256") else None


def _malformed(why: str) -> NoReturn:
    raise FormatError(why, reason=Reason.LOG_FORMAT, clause=_CLAUSE)


def begins_with_dstack(entries: Sequence[LogEntry]) -> bool:
    """Whether the first entry of a log is one of the profile; `read_dstack_events` reads it."""
    return bool(entries) and entries[0].event.name in _RANK


def read_dstack_events(entries: Sequence[LogEntry]) -> DstackEvents:
    """
    Read the meaning of a replayed RTMR3 log.

    Raises `Refused` (EVENT_MISSING, EVENT_DUPLICATE, EVENT_UNKNOWN, EVENT_ORDER), or `FormatError`
    for a payload that is not what its name says. Does not replay: call only with entries whose
    replay matched the quote.
    """
    names = [entry.event.name for entry in entries]
    for fault in profile_faults(names):
        raise fault
    ready = names.index(_READY)
    payloads: dict[str, bytes] = {}
    scripts: list[bytes] = []
    for entry in entries[: ready + 1]:
        name, payload = entry.event.name, entry.event.payload
        if len(payload) not in _SIZES.get(name, (len(payload),)):
            _malformed(f"{name} has a payload of {len(payload)} bytes")
        payloads[name] = payload
        if name == _REPEATED:
            scripts.append(payload)
    return DstackEvents(
        app_id=payloads["app-id"],
        compose_hash=payloads["compose-hash"],
        init_script_hashes=tuple(scripts),
        gpu_policy_hash=payloads.get("gpu-policy-hash"),
        gpu_attestation=payloads.get("gpu-attestation"),
        instance_id=payloads.get("instance-id", b""),
        mr_kms=payloads.get("mr-kms"),
        os_image_hash=payloads.get("os-image-hash"),
        key_provider=_key_provider(payloads.get("key-provider")),
        storage_fs=_text(payloads.get("storage-fs", b"")),
        after_ready=tuple(names[ready + 1 :]),
    )


def profile_faults(names: Sequence[str]) -> Iterator[Refused]:
    """
    Yield everything in which the names of a log, in its order, break the profile.

    `read_dstack_events` refuses with the first. Raises nothing.
    """
    counts = Counter(names)
    for name in _REQUIRED:
        if not counts[name]:
            yield Refused(Reason.EVENT_MISSING, f"{name} is missing")
    for name in _ORDER:
        if name != _REPEATED and counts[name] > 1:
            yield Refused(Reason.EVENT_DUPLICATE, f"{name} stands {counts[name]} times")
    ready = names.index(_READY) if counts[_READY] else len(names)
    for index, name in enumerate(names[:ready]):
        if name not in _RANK:
            yield Refused(Reason.EVENT_UNKNOWN, f"runtime entry {index}")
    ranks = [_RANK[name] for name in names[:ready] if name in _RANK]
    if ranks != sorted(ranks):
        yield Refused(Reason.EVENT_ORDER, "the events before system-ready are not in order")
    for name in names[ready + 1 :]:
        if name in _RANK:
            # An application of an older guest may append what it likes; identity it may not.
            yield Refused(Reason.EVENT_ORDER, f"{name} stands after system-ready")


def _key_provider(payload: bytes | None) -> KeyProvider | None:
    if payload is None:
        return None
    value = parse_json(payload, what="key-provider payload", reason=Reason.LOG_FORMAT)
    members = Members(value, what="key-provider payload", reason=Reason.LOG_FORMAT)
    name = members.text("name", max_chars=_MAX_TEXT)
    found = KeyProvider(name, members.hexes("id"), payload)
    members.end()
    return found


def _text(payload: bytes) -> str:
    try:
        text = payload.decode("ascii")
    except UnicodeDecodeError:
        _malformed("storage-fs is not text")
    if len(text) > _MAX_TEXT or not text.isprintable():
        _malformed("storage-fs is not a short name")
    return text
