"""The operator's list of the nodes behind a relay: addresses are in it, and go nowhere else.

Format: docs/cli.md, Relay. It is the operator's own file; it is read strictly all the same.
"""

from __future__ import annotations

from typing import Final

from confide.adapters.http_client import require_node_url
from confide.errors import ConfigurationError, FormatError, Reason
from confide.node.relay_table import NodeEntry
from confide.wire.directory import MAX_NODES, Role
from confide.wire.json import JsonValue, Members, parse_json

__all__ = ["parse_relay_nodes"]

_TYPE: Final = "confide/relay-nodes/v1"
_REASON: Final = Reason.DIRECTORY_FORMAT


def parse_relay_nodes(raw: bytes) -> tuple[NodeEntry, ...]:
    """Parse the file; `ConfigurationError` says what is wrong with it."""
    try:
        top = Members(parse_json(raw, what="nodes", reason=_REASON), what="nodes", reason=_REASON)
        top.choice("type", (_TYPE,))
        entries = tuple(_entry(item) for item in top.items("nodes", max_items=MAX_NODES))
        top.end()
    except FormatError as error:
        raise ConfigurationError(f"the file of nodes: {error.what}") from error
    pinned = [entry.pinned for entry in entries if entry.pinned is not None]
    if not entries or len(set(pinned)) != len(pinned):
        raise ConfigurationError("the file of nodes: no node, or one keyset pinned twice")
    if len({entry.url for entry in entries}) != len(entries):
        raise ConfigurationError("the file of nodes: one address twice")
    return entries


def _entry(item: JsonValue) -> NodeEntry:
    members = Members(item, what="node", reason=_REASON)
    url = members.text("url").rstrip("/")
    pinned = members.hexes("keyset", 32) if members.has("keyset") else None
    role: Role = members.choice("role", ("agent", "model"))
    model = members.text("model", max_chars=256) if members.has("model") else ""
    roots = members.text("roots", max_chars=256)
    members.end()
    if bool(model) is not (role == "model") or not roots or not (model + roots).isprintable():
        members.refuse("a model node has a model, an agent node none, and both have roots")
    require_node_url(url)
    return NodeEntry(url, role, model, roots, pinned)
