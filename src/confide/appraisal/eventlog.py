"""Strict replay of event logs against quoted registers, and what our own nodes wrote into RTMR3.

Clauses: docs/protocols/eventlog.md. Input registers come from a *verified* quote; logs are
hostile. One list object is checked, replayed and read: there is no second copy that could differ.
Digest-only firmware events prove nothing but their digest; their labels are shown as such.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from confide.appraisal.dstack_log import begins_with_dstack, read_dstack_events
from confide.appraisal.steps import Refused, Step
from confide.errors import FormatError, Reason
from confide.wire.ccel import EV_NO_ACTION
from confide.wire.faces import FaceName
from confide.wire.json import Members, parse_json
from confide.wire.quantisation import read_quantisation
from confide.wire.rtmr_log import RUNTIME_EVENT_TYPE, extend_register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.appraisal.dstack_log import DstackEvents
    from confide.wire.ccel import CcelEvent
    from confide.wire.quantisation import Quantisation
    from confide.wire.rtmr_log import LogEntry, RuntimeEvent

__all__ = [
    "LOG_STEPS",
    "GpuEvent",
    "LogState",
    "ModelEvent",
    "NodeEvent",
    "NodeEvents",
    "Role",
    "read_node_events",
    "register_reason",
    "replay_ccel",
    "replay_digests",
    "replay_runtime",
    "run_commitment",
    "runtime_part",
]

Role = Literal["agent", "model"]
_MISMATCH = (
    Reason.RTMR0_MISMATCH,
    Reason.RTMR1_MISMATCH,
    Reason.RTMR2_MISMATCH,
    Reason.RTMR3_MISMATCH,
)
# From: docs/protocols/eventlog.md §3. Boot events, in order, each exactly once.
_BOOT_EVENTS: dict[str, tuple[str, ...]] = {
    "agent": ("confide-node", "confide-ready"),
    "model": ("confide-node", "confide-model", "confide-gpu", "confide-ready"),
}
# From: docs/protocols/eventlog.md §4. Events of runs, after `confide-ready`, any number.
_RUN_EVENTS = frozenset({"confide-expectation", "confide-agent-image", "confide-training"})
# From: docs/protocols/eventlog.md §3: stands before `confide-ready`, only where faces are on.
_FACES = "confide-faces"
_KNOWN = frozenset(
    {*(name for names in _BOOT_EVENTS.values() for name in names), _FACES, *_RUN_EVENTS}
)
_CLAUSE_NODE = "docs/protocols/eventlog.md#3"


def replay_ccel(events: Sequence[CcelEvent]) -> tuple[bytes, bytes, bytes, bytes]:
    """Return RTMR0..3 after `events`; EV_NO_ACTION and MRTD events do not count."""
    registers = [bytes(48)] * 4
    for event in events:
        if event.extended and event.register:
            index = event.register - 1
            registers[index] = extend_register(registers[index], event.digest)
    return registers[0], registers[1], registers[2], registers[3]


def register_reason(index: int) -> Reason:
    """Return the reason for a mismatch of RTMR0..3."""
    return _MISMATCH[index]


def runtime_part(entries: Sequence[LogEntry]) -> tuple[LogEntry, ...]:
    """
    Return the entries of register 3, and those that only claim to be runtime events.

    The latter belong to no register that may hold them; `replay_runtime` refuses them.
    """
    return tuple(
        entry for entry in entries if entry.register == 3 or entry.event_type == RUNTIME_EVENT_TYPE
    )


def replay_digests(entries: Sequence[LogEntry]) -> dict[int, bytes]:
    """
    Return the registers of 0 to 2 that `entries` cover, after their supplied digests.

    Names and payloads of these entries are labels; only the digests are bound, by a replay that
    reproduces the quote (docs/protocols/eventlog.md §1.6). EV_NO_ACTION is never extended.
    """
    registers: dict[int, bytes] = {}
    for entry in entries:
        if entry.register < 3 and entry.event_type != EV_NO_ACTION:
            before = registers.get(entry.register, bytes(48))
            registers[entry.register] = extend_register(before, entry.digest)
    return registers


def replay_runtime(entries: Sequence[LogEntry]) -> bytes:
    """
    Return RTMR3 after `entries`, every digest recomputed.

    Raises `Refused`: RUNTIME_EVENT_TYPE when an entry is not a runtime event of register 3,
    DIGEST_MISMATCH or PREIMAGE_MISMATCH when what was supplied differs from what was recomputed.
    """
    register = bytes(48)
    for index, entry in enumerate(entries):
        if entry.register != 3 or entry.event_type != RUNTIME_EVENT_TYPE:
            raise Refused(Reason.RUNTIME_EVENT_TYPE, f"runtime entry {index}")
        digest = entry.event.digest(entry.version)
        if entry.digest and entry.digest != digest:
            raise Refused(Reason.DIGEST_MISMATCH, f"runtime entry {index}")
        if entry.preimage is not None and (
            entry.version != 2 or entry.preimage != entry.event.preimage()
        ):
            raise Refused(Reason.PREIMAGE_MISMATCH, f"runtime entry {index}")
        register = extend_register(register, digest)
    return register


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """`confide-node`: the first thing a node measures. `software` is the package digest."""

    role: Role
    software: bytes
    version: str


@dataclass(frozen=True, slots=True)
class ModelEvent:
    """
    `confide-model`: the name served, and what its weights are.

    `weights` is the SHA-256 of the OMS manifest, or None where the weights are outside the node;
    `loaded` says that the node itself started the engine on exactly these (weights.md §3, §7);
    `held` what the kernel keeps in place (weights.md §8).
    """

    name: str
    weights: bytes | None
    loaded: bool = True
    quantisation: Quantisation | None = None
    held: tuple[str, bytes] | None = None


@dataclass(frozen=True, slots=True)
class GpuEvent:
    """`confide-gpu`: the node appraised these devices before it used them."""

    devices: bytes
    policy: bytes
    serials: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeEvents:
    """
    RTMR3 of one of our nodes, read after a successful replay.

    `dstack` is what dstack measured before the node; None where it measured nothing.
    """

    node: NodeEvent
    model: ModelEvent | None
    gpu: GpuEvent | None
    runs: tuple[RuntimeEvent, ...]
    faces: tuple[FaceName, ...] = ()
    dstack: DstackEvents | None = None

    def has_run_event(self, name: str, payload: bytes) -> bool:
        """Whether `name` was extended with exactly `payload` after the node was ready."""
        return any(event.name == name and event.payload == payload for event in self.runs)


def run_commitment(event: str, *, run: bytes, digest: bytes) -> bytes:
    """
    Return the payload of a run event: SHA-256 over the event name, the secret run id, the digest.

    A log reader who does not hold the 32-byte `run` learns neither which Expectation nor which
    image ran, nor that two runs are alike. From: docs/protocols/eventlog.md §4.
    """
    return hashlib.sha256(
        b"confide/run-event/v1\0" + event.encode() + b"\0" + run + digest
    ).digest()


def read_node_events(entries: Sequence[LogEntry]) -> NodeEvents:
    """
    Read the meaning of a replayed log: exact order, each boot event once, nothing unknown.

    What dstack measured comes before, whole, or not at all; whether a node may be on dstack is the
    Expectation's to say (node/7).

    Raises `Refused` (EVENT_*), or `FormatError` for a payload that is not what its name says.
    Does not replay: call only with entries whose replay matched the quote.
    """
    dstack = None
    if begins_with_dstack(entries):
        dstack = read_dstack_events(entries)
        entries = entries[-len(dstack.after_ready) :] if dstack.after_ready else ()
    names = [entry.event.name for entry in entries]
    if unknown := [index for index, name in enumerate(names) if name not in _KNOWN]:
        raise Refused(Reason.EVENT_UNKNOWN, f"entry {unknown[0]}")
    if not names or names[0] != "confide-node":
        raise Refused(Reason.EVENT_MISSING, "the first event is not confide-node")
    node = _read_node(entries[0].event.payload)
    boot = _BOOT_EVENTS[node.role]
    if _FACES in names and node.role == "model":
        boot = (*boot[:-1], _FACES, boot[-1])
    _require_boot_order(names, boot)
    model = gpu = None
    faces: tuple[FaceName, ...] = ()
    if node.role == "model":
        model = _read_model(entries[1].event.payload)
        gpu = _read_gpu(entries[2].event.payload)
        faces = _read_faces(entries[3].event.payload) if _FACES in boot else ()
    runs = tuple(entry.event for entry in entries[len(boot) :])
    return NodeEvents(node, model, gpu, runs, faces, dstack)


def _require_boot_order(names: list[str], boot: tuple[str, ...]) -> None:
    for name in boot:
        count = names.count(name)
        if count == 0:
            raise Refused(Reason.EVENT_MISSING, f"{name} is missing")
        if count > 1:
            raise Refused(Reason.EVENT_DUPLICATE, f"{name} stands {count} times")
    if tuple(names[: len(boot)]) != boot:
        raise Refused(Reason.EVENT_ORDER, f"boot events are not {', '.join(boot)}")
    if foreign := [name for name in names[len(boot) :] if name not in _RUN_EVENTS]:
        raise Refused(Reason.EVENT_ORDER, f"{foreign[0]} stands after confide-ready")


def _payload(raw: bytes, what: str) -> Members:
    value = parse_json(raw, what=what, reason=Reason.LOG_FORMAT)
    return Members(value, what=what, reason=Reason.LOG_FORMAT)


def _read_node(raw: bytes) -> NodeEvent:
    members = _payload(raw, "confide-node payload")
    role: Role = members.choice("role", ("agent", "model"))
    event = NodeEvent(role, members.hexes("software", 32), members.text("version", max_chars=64))
    members.end()
    return event


def _read_model(raw: bytes) -> ModelEvent:
    members = _payload(raw, "confide-model payload")
    name = members.text("name", max_chars=256)
    located = members.choice("served", ("embedded", "beside", "upstream"))
    if located == "upstream":
        members.end()
        return ModelEvent(name, None, loaded=False)
    weights, quantisation = members.hexes("weights", 32), read_quantisation(members)
    held = None
    if located == "beside" and members.has("held"):
        inner = members.members("held")
        held = (inner.choice("kind", ("fs-verity", "dm-verity")), inner.hexes("digest", 32))
        inner.end()
    members.end()
    return ModelEvent(name, weights, located == "embedded", quantisation, held)


def _read_gpu(raw: bytes) -> GpuEvent:
    members = _payload(raw, "confide-gpu payload")
    event = GpuEvent(
        members.hexes("devices", 32), members.hexes("policy", 32), members.texts("serials")
    )
    if not event.serials:
        raise FormatError(
            "confide-gpu payload: no device", reason=Reason.LOG_FORMAT, clause=_CLAUSE_NODE
        )
    members.end()
    return event


def _read_faces(raw: bytes) -> tuple[FaceName, ...]:
    members = _payload(raw, "confide-faces payload")
    names = members.texts("faces", max_items=len(FaceName))
    members.end()
    # One form for one set: sorted, each once, and no event at all for none.
    if not names or list(names) != sorted(set(names)) or not set(names) <= set(FaceName):
        members.refuse("faces is not a sorted list of known faces")
    return tuple(FaceName(name) for name in names)


@dataclass(slots=True)
class LogState:
    """Working state of the log steps: quoted registers and parsed logs in, `events` out."""

    quoted: tuple[bytes, bytes, bytes, bytes]
    firmware: tuple[CcelEvent, ...]
    runtime: tuple[LogEntry, ...]
    events: NodeEvents | None = None


def _firmware_step(state: LogState) -> str:
    replayed = replay_ccel(state.firmware)
    for index in range(3):
        if replayed[index] != state.quoted[index]:
            raise Refused(_MISMATCH[index], f"RTMR{index} does not follow from the firmware log")
    if replayed[3] != bytes(48):
        raise Refused(Reason.RTMR3_MISMATCH, "the firmware log extends RTMR3")
    return f"{len(state.firmware)} firmware events"


def _runtime_step(state: LogState) -> str:
    if replay_runtime(state.runtime) != state.quoted[3]:
        raise Refused(Reason.RTMR3_MISMATCH, "RTMR3 does not follow from the runtime log")
    return f"{len(state.runtime)} runtime events, digests recomputed"


def _meaning_step(state: LogState) -> str:
    state.events = read_node_events(state.runtime)
    return f"{state.events.node.role} node, {len(state.events.runs)} run events"


LOG_STEPS: tuple[Step[LogState], ...] = (
    Step("log/1", "docs/protocols/eventlog.md#2", _firmware_step),
    Step("log/2", "docs/protocols/eventlog.md#1", _runtime_step),
    Step("log/3", _CLAUSE_NODE, _meaning_step, needs=("log/2",)),
)
