"""The Expectation: the content-addressed manifest of what must run. Pure.

Format: docs/protocols/expectation.md. People write TOML; what travels, is hashed and is compared
is RFC 8785 JSON with every field present. `Expectation.digest` names it: the client appraises
evidence against it, the node measures it before a run and enforces it, the receipt carries it.

An Expectation grants nothing by omission: egress, recipients, relaxations and tolerated gaps are
empty unless written down. It does not say whether its own values are wise.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Literal

from confide.errors import FormatError, Reason
from confide.wire.json import JsonValue, Members, is_hex, jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "AgentSpec",
    "Difference",
    "Expectation",
    "GpuSpec",
    "HardwareSpec",
    "Limits",
    "ModelSpec",
    "NodeSpec",
    "diff_expectations",
    "parse_expectation",
    "parse_expectation_toml",
    "parse_limits",
]

_TYPE = "confide/expectation/v1"
_REASON = Reason.EXPECTATION_MISMATCH
_MIB = 1024 * 1024
# Ten lists of 256 measurements each, written out.
_MAX_TOML_CHARS = 512 * 1024
# One spelling for each port: no leading zero, ASCII digits, never a number too long to convert.
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """
    Accepted launch measurements of one node, each a set of alternatives (hex, 48 bytes).

    `software` is the SHA-256 of the node package (32 bytes hex), `mrconfigid` the launch
    configuration. An empty set accepts nothing.
    """

    mrtd: tuple[str, ...]
    rtmr0: tuple[str, ...]
    rtmr1: tuple[str, ...]
    rtmr2: tuple[str, ...]
    mrconfigid: tuple[str, ...]
    software: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """Which GPUs the model node must prove; `drivers` and `vbios` are allow-lists."""

    count: int
    mode: Literal["SPT", "MPT"]
    chips: tuple[str, ...]
    drivers: tuple[str, ...]
    vbios: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HardwareSpec:
    """
    Policy for platform evidence.

    `roots` is `vendor` or `simulated:<sha256 hex of a roots file>`. `tcb_status` lists accepted
    merged TCB statuses. `accept_not_proven` lists claims that may stay unproven, by name.
    `platforms` is an allow-list of PPIDs; empty means any platform, which no signature check can
    make safe against an extracted key (docs/threat-model.md). `mrseam` lists accepted TDX modules
    (48 bytes hex), `platform_flags` what a platform certificate may say (dynamic, cached-keys,
    smt). `max_collateral_days` bounds the age of Intel's statements.
    """

    roots: str
    tcb_status: tuple[str, ...]
    min_tcb_evaluation: int
    max_collateral_days: int
    mrseam: tuple[str, ...]
    platform_flags: tuple[str, ...]
    platforms: tuple[str, ...]
    accept_not_proven: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """The agent: OCI manifest digest (hex) and how it is driven."""

    image: str
    mode: Literal["batch", "chat"]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """
    The model: public name and SHA-256 of the OMS manifest of its weights (hex).

    `weights` is empty where the weights lie outside the model node; the claim `model-weights` is
    then not proven and has to be named in `accept_not_proven`.
    """

    name: str
    weights: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may use. Bytes, seconds and counts; the node enforces each."""

    memory_bytes: int = 512 * _MIB
    cpus_milli: int = 1000
    pids: int = 128
    wall_seconds: int = 600
    input_bytes: int = 256 * _MIB
    output_bytes: int = 64 * _MIB
    output_files: int = 1000


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must run, where, with what, and who receives the results."""

    name: str
    hardware: HardwareSpec
    gpu: GpuSpec
    agent_node: NodeSpec
    model_node: NodeSpec
    agent: AgentSpec
    model: ModelSpec
    egress: tuple[str, ...]
    recipients: tuple[str, ...]
    limits: Limits

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON document, every field present."""
        return {"type": _TYPE, **_jsonable(asdict(self))}

    def canonical(self) -> bytes:
        """Return the RFC 8785 bytes: what is sent and hashed."""
        return jcs(self.document())

    @property
    def digest(self) -> bytes:
        """SHA-256 over `canonical()`: the name of this Expectation."""
        return hashlib.sha256(self.canonical()).digest()


def _jsonable(value: dict[str, object]) -> dict[str, JsonValue]:
    out: dict[str, JsonValue] = {}
    for key, item in value.items():
        if isinstance(item, dict):
            out[key] = _jsonable(item)
        elif isinstance(item, tuple):
            out[key] = [str(part) for part in item]
        elif isinstance(item, str | int):
            out[key] = item
    return out


def parse_expectation(raw: bytes) -> Expectation:
    """
    Parse canonical JSON bytes; anything but the canonical form of a full document is refused.

    Raises `FormatError` with EXPECTATION_MISMATCH.
    """
    expectation = _read(parse_json(raw, what="Expectation", reason=_REASON), complete=True)
    if expectation.canonical() != raw:
        raise FormatError(
            "Expectation: not in canonical form", reason=_REASON, clause="RFC 8785 §3"
        )
    return expectation


def parse_expectation_toml(text: str) -> Expectation:
    """
    Parse what a person wrote. Omitted optional fields take the refusing default.

    Raises `FormatError` that names the field.
    """
    # What travels is JSON: a verifier never needs TOML.
    from confide.wire.toml import parse_toml  # noqa: PLC0415

    value = parse_toml(text, what="Expectation", reason=_REASON, max_chars=_MAX_TOML_CHARS)
    value.setdefault("type", _TYPE)
    return _read(value, complete=False)


def _read(value: JsonValue, *, complete: bool) -> Expectation:
    top = Members(value, what="Expectation", reason=_REASON)
    top.choice("type", (_TYPE,))
    expectation = Expectation(
        name=top.text("name", max_chars=128),
        hardware=_read_hardware(top.members("hardware"), complete=complete),
        gpu=_read_gpu(top.members("gpu")),
        agent_node=_read_node(top.members("agent_node")),
        model_node=_read_node(top.members("model_node")),
        agent=_read_agent(top.members("agent")),
        model=_read_model(top.members("model")),
        egress=_read_egress(top, complete=complete),
        recipients=_read_recipients(top, complete=complete),
        limits=parse_limits(top, complete=complete),
    )
    top.end()
    return expectation


def _hex_set(members: Members, name: str, size: int) -> tuple[str, ...]:
    values = members.texts(name)
    for value in values:
        _require_hex(members, name, value, size)
    return values


def _require_hex(members: Members, name: str, value: str, size: int) -> str:
    if not is_hex(value, size):
        members.refuse(f"{name} is not {size} bytes of lower-case hex")
    return value


def _read_node(members: Members) -> NodeSpec:
    spec = NodeSpec(
        **{
            name: _hex_set(members, name, 48)
            for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "mrconfigid")
        },
        software=_hex_set(members, "software", 32),
    )
    members.end()
    return spec


def _read_hardware(members: Members, *, complete: bool) -> HardwareSpec:
    roots = members.text("roots")
    kind, _, digest = roots.partition(":")
    if kind == "simulated":
        _require_hex(members, "roots", digest, 32)
    elif roots != "vendor":
        members.refuse("roots is neither vendor nor simulated:<sha256>")
    optional = complete or members.has("platforms")
    tolerated = complete or members.has("accept_not_proven")
    spec = HardwareSpec(
        roots=roots,
        tcb_status=members.texts("tcb_status"),
        min_tcb_evaluation=members.integer("min_tcb_evaluation"),
        max_collateral_days=members.integer("max_collateral_days", low=1, high=366),
        mrseam=_hex_set(members, "mrseam", 48),
        platform_flags=members.texts("platform_flags"),
        platforms=_hex_set(members, "platforms", 16) if optional else (),
        accept_not_proven=members.texts("accept_not_proven") if tolerated else (),
    )
    members.end()
    return spec


def _read_gpu(members: Members) -> GpuSpec:
    spec = GpuSpec(
        count=members.integer("count", low=1, high=8),
        mode=members.choice("mode", ("SPT", "MPT")),
        chips=members.texts("chips"),
        drivers=members.texts("drivers"),
        vbios=members.texts("vbios"),
    )
    members.end()
    return spec


def _read_agent(members: Members) -> AgentSpec:
    image = _require_hex(members, "image", members.text("image"), 32)
    spec = AgentSpec(image, members.choice("mode", ("batch", "chat")))
    members.end()
    return spec


def _read_model(members: Members) -> ModelSpec:
    name, weights = members.text("name", max_chars=256), members.text("weights")
    if weights:
        _require_hex(members, "weights", weights, 32)
    members.end()
    return ModelSpec(name, weights)


def _read_egress(top: Members, *, complete: bool) -> tuple[str, ...]:
    if not complete and not top.has("egress"):
        return ()
    values = top.texts("egress")
    for value in values:
        host, _, port = value.rpartition(":")
        if not (host and _PORT.match(port) and int(port) < 65536) or value.strip(
            "abcdefghijklmnopqrstuvwxyz0123456789.-:[]"
        ):
            top.refuse("egress holds something that is not host:port in lower case")
    return values


def _read_recipients(top: Members, *, complete: bool) -> tuple[str, ...]:
    if not complete and not top.has("recipients"):
        return ("caller",)
    values = top.texts("recipients", max_items=16)
    for value in values:
        if value != "caller":
            _require_hex(top, "recipients", value.removeprefix("x25519:"), 32)
            if not value.startswith("x25519:"):
                top.refuse("a recipient is neither caller nor x25519:<public key>")
    if not values:
        top.refuse("recipients is empty: nobody could read the output")
    return values


def parse_limits(top: Members, *, complete: bool) -> Limits:
    """
    Read the member `limits` of `top`; unless `complete`, absent limits are the defaults.

    Raises the `FormatError` of `top`.
    """
    if not complete and not top.has("limits"):
        return Limits()
    members = top.members("limits")
    found: dict[str, int] = {}
    for field in fields(Limits):
        if complete or members.has(field.name):
            found[field.name] = members.integer(field.name, low=1)
    members.end()
    return Limits(**found)


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that differs: dotted `path`, both values printable, what it means in words."""

    path: str
    before: str
    after: str
    meaning: str


# What a reviewer should think of when a field changes.
_MEANING = {
    "name": "only the label",
    "hardware.roots": "a different root of trust: everything below means something else",
    "hardware.tcb_status": "other patch levels of the platform are accepted",
    "hardware.min_tcb_evaluation": "older or newer statements by Intel are required",
    "hardware.max_collateral_days": "older or newer statements by Intel are required",
    "hardware.mrseam": "other TDX modules are accepted",
    "hardware.platform_flags": "platforms in other configurations are accepted",
    "hardware.platforms": "other machines are accepted",
    "hardware.accept_not_proven": "other claims may stay unproven",
    "gpu": "other GPUs, drivers or firmware are accepted",
    "agent_node": "another operating system or node software may handle the inputs",
    "model_node": "another operating system or node software may see the prompts",
    "agent.image": "another agent program runs",
    "agent.mode": "the agent is driven differently",
    "model": "another model answers",
    "egress": "the agent may send data to other places",
    "recipients": "other parties can read the output",
    "limits": "the run may use more or less",
}


def diff_expectations(before: Expectation, after: Expectation) -> tuple[Difference, ...]:
    """Return every field that differs, in document order, with its meaning in words."""
    left, right = dict(_leaves("", before)), dict(_leaves("", after))
    return tuple(
        Difference(path, left[path], right[path], _meaning(path))
        for path in left
        if left[path] != right[path]
    )


def _meaning(path: str) -> str:
    while path not in _MEANING:
        path = path.rpartition(".")[0]
    return _MEANING[path]


def _leaves(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            path = f"{prefix}.{field.name}" if prefix else field.name
            yield from _leaves(path, getattr(value, field.name))
    elif isinstance(value, tuple):
        yield prefix, ", ".join(value) or "(none)"
    else:
        yield prefix, str(value) or "(none)"
