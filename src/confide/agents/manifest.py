"""`agent.toml`: what an agent folder says about itself. Pure.

Format: docs/protocols/agent-image.md §1. The file is the author's wish; what a run may really do
is the Expectation's decision, which a node enforces without looking here again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from confide.agents.egress import parse_destination
from confide.agents.names import parse_member_name
from confide.agents.reference import PinnedReference, parse_reference
from confide.errors import FormatError, Reason
from confide.expectation import Limits, SecretUse, parse_limits, parse_secret_uses
from confide.wire.json import Members
from confide.wire.toml import parse_toml

if TYPE_CHECKING:
    from confide.agents.egress import Destination

__all__ = ["AgentManifest", "parse_agent_manifest"]

_REASON = Reason.AGENT_FORMAT
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_MAX_TEXT = 64 * 1024


@dataclass(frozen=True, slots=True)
class AgentManifest:
    """
    One agent folder.

    Either `existing` names a finished image, or the image is built from `base` (None: the
    default base), `requirements` (None: no packages) and the folder without `leave_out`.
    `entry` is empty only with `existing`: the image's own entry point is then used.
    """

    name: str
    mode: Literal["batch", "chat"]
    entry: tuple[str, ...]
    model: str
    egress: tuple[Destination, ...]
    existing: PinnedReference | None
    base: PinnedReference | None
    requirements: str | None
    leave_out: tuple[str, ...]
    secrets: tuple[SecretUse, ...]
    state: bool
    limits: Limits


def parse_agent_manifest(raw: bytes) -> AgentManifest:
    """
    Parse the bytes of `agent.toml`.

    Unknown keys are refused: a misspelt limit must not be a limit that is not there.
    Raises `FormatError` that names the key.
    """
    if len(raw) > _MAX_TEXT:
        raise _refusal(f"{len(raw)} bytes, at most {_MAX_TEXT}")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refusal("not UTF-8", offset=error.start) from error
    value = parse_toml(text, what="agent.toml", reason=_REASON, max_chars=_MAX_TEXT)
    top = Members(value, what="agent.toml", reason=_REASON)
    name = top.text("name", max_chars=63)
    if not _NAME.match(name):
        top.refuse("name is not lower-case letters, digits and hyphens")
    mode: Literal["batch", "chat"] = top.choice("mode", ("batch", "chat"))
    image = _read_image(top)
    entry = top.texts("entry", max_items=64) if top.has("entry") else ()
    if not entry and image.existing is None:
        top.refuse("entry is missing")
    if any("\0" in word for word in entry):
        top.refuse("entry holds a NUL")
    manifest = AgentManifest(
        name=name,
        mode=mode,
        entry=entry,
        model=top.text("model", max_chars=256),
        egress=tuple(parse_destination(text) for text in _optional_texts(top, "egress")),
        existing=image.existing,
        base=image.base,
        requirements=image.requirements,
        leave_out=image.leave_out,
        secrets=parse_secret_uses(top, "secrets") if top.has("secrets") else (),
        state=top.boolean("state") if top.has("state") else False,
        limits=parse_limits(top, complete=False),
    )
    top.end()
    return manifest


@dataclass(frozen=True, slots=True)
class _Image:
    existing: PinnedReference | None = None
    base: PinnedReference | None = None
    requirements: str | None = None
    leave_out: tuple[str, ...] = ()


def _read_image(top: Members) -> _Image:
    if not top.has("image"):
        return _Image()
    members = top.members("image")
    if members.has("existing"):
        image = _Image(existing=parse_reference(members.text("existing")))
        members.end()
        return image
    base = members.text("base") if members.has("base") else "default"
    requirements = members.text("requirements") if members.has("requirements") else None
    image = _Image(
        base=None if base == "default" else parse_reference(base),
        requirements=None if requirements is None else parse_member_name(requirements),
        leave_out=tuple(parse_member_name(n) for n in _optional_texts(members, "leave_out")),
    )
    members.end()
    return image


def _optional_texts(members: Members, name: str) -> tuple[str, ...]:
    return members.texts(name) if members.has(name) else ()


def _refusal(why: str, *, offset: int = -1) -> FormatError:
    return FormatError(
        f"agent.toml: {why}", reason=_REASON, clause="agent-image.md §1", offset=offset
    )
