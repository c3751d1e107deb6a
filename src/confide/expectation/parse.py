"""Reading Expectations: canonical JSON as it travels, TOML as people write it. Pure.

Clauses: docs/protocols/expectation.md §1, §2. `raw` and `text` are hostile; omitted optional fields
of TOML take the refusing default.
"""

from __future__ import annotations

import re
from dataclasses import fields

from confide.errors import FormatError, Reason
from confide.expectation.broker import parse_broker_spec, require_state_name
from confide.expectation.document import (
    TYPE,
    AgentSpec,
    Expectation,
    GpuSpec,
    HardwareSpec,
    Limits,
    ModelSpec,
    NodeSpec,
)
from confide.wire.json import JsonValue, Members, is_hex, parse_json

__all__ = ["parse_expectation", "parse_expectation_toml", "parse_gpu_spec", "parse_limits"]

_REASON = Reason.EXPECTATION_MISMATCH
# Ten lists of 256 measurements each, written out.
_MAX_TOML_CHARS = 512 * 1024
# One spelling for each port: no leading zero, ASCII digits, never a number too long to convert.
_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")


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
    value.setdefault("type", TYPE)
    return _read(value, complete=False)


def _read(value: JsonValue, *, complete: bool) -> Expectation:
    top = Members(value, what="Expectation", reason=_REASON)
    top.choice("type", (TYPE,))
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
        broker=parse_broker_spec(top, complete=complete),
        limits=parse_limits(top, complete=complete),
    )
    require_state_name(top, expectation.name, expectation.broker)
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
        compose=_hex_set(members, "compose", 32) if members.has("compose") else (),
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


def parse_gpu_spec(raw: bytes) -> GpuSpec:
    """Parse the member `gpu` of an Expectation by itself, in JSON. Raises `FormatError`."""
    return _read_gpu(
        Members(parse_json(raw, what="gpu", reason=_REASON), what="gpu", reason=_REASON)
    )


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
