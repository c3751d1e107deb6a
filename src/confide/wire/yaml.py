"""The one place where YAML is read: what other people's launch documents are written in.

YAML 1.2.2, one document, the core schema, as JSON values. PyYAML delivers events; values are made
here, so that nothing in a document selects a type: tags other than those of the core schema are
refused, members that are there twice are refused. Aliases and merge keys (`<<`) are followed,
and what they expand to counts against the same bounds as what is written out.

No schema and no policy. PyYAML is part of the extra `services` and imported when it is needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from confide.errors import ConfigurationError, FormatError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import yaml

    from confide.errors import Reason
    from confide.wire.json import JsonValue

__all__ = ["parse_yaml"]

_CLAUSE: Final = "YAML 1.2.2 §3"
# From: dstack, app-compose.json holds at most 256 kB.
_MAX_BYTES: Final = 256 * 1024
_MAX_DEPTH: Final = 32
# Nodes after expansion. Precedent: a compose file of 250 kB has 55,000 events written out.
_MAX_NODES: Final = 65_536
# From: RFC 7493 §2.2.
_MAX_SAFE_INTEGER: Final = 2**53 - 1
_TAGS: Final = "tag:yaml.org,2002:"
_CORE: Final = frozenset({"str", "null", "bool", "int", "float", "map", "seq"})
# From: YAML 1.2.2 §10.3.2, tag resolution of the core schema.
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,17}\Z|0o[0-7]{1,18}\Z|0x[0-9A-Fa-f]{1,14}\Z")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,3})?\Z")
_MERGE: Final = "<<"


@dataclass(frozen=True, slots=True)
class _Node:
    """A value, how many nodes it has when it is written out, and how deep it goes."""

    value: JsonValue
    nodes: int
    depth: int


def parse_yaml(raw: bytes, *, what: str, reason: Reason) -> JsonValue:
    """
    Parse the one document in `raw`, at most 256 KiB; `what` and `reason` go into the error.

    Keys are strings as they are written (`80: x` has the key `80`). `yes` and `on` are strings.
    Raises `FormatError`; `ConfigurationError` where PyYAML is not installed.
    """
    if len(raw) > _MAX_BYTES:
        raise FormatError(
            f"{what}: {len(raw)} bytes, at most {_MAX_BYTES}", reason=reason, clause=_CLAUSE
        )
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{what}: not UTF-8", reason=reason, clause="YAML 1.2.2 §5.2", offset=error.start
        ) from error
    try:
        import yaml  # noqa: PLC0415 - an extra, needed here alone
    except ImportError as error:
        raise ConfigurationError(
            "reading YAML needs PyYAML: pip install 'confide[services]'"
        ) from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        return _Composer(yaml.parse(text, Loader=loader), what, reason).document().value
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise FormatError(f"{what}: not YAML", reason=reason, clause="YAML 1.2.2 §6") from error


class _Composer:
    """Makes values out of events; stops at the first thing that is out of bounds."""

    __slots__ = ("_anchors", "_events", "_reason", "_spent", "_what")

    def __init__(self, events: Iterator[yaml.Event], what: str, reason: Reason) -> None:
        self._events = events
        self._what = what
        self._reason = reason
        self._anchors: dict[str, _Node | None] = {}
        self._spent = 0

    def document(self) -> _Node:
        self._skip("StreamStartEvent")
        self._skip("DocumentStartEvent")
        node = self._node(next(self._events), 1)
        self._skip("DocumentEndEvent")
        # A second document: which one counts would be the reader's choice.
        self._skip("StreamEndEvent")
        return node

    def _skip(self, kind: str) -> None:
        if type(next(self._events)).__name__ != kind:
            self._refuse("not exactly one document")

    def _refuse(self, why: str) -> NoReturn:
        raise FormatError(f"{self._what}: {why}", reason=self._reason, clause=_CLAUSE)

    def _spend(self, nodes: int) -> None:
        self._spent += nodes
        if self._spent > _MAX_NODES:
            self._refuse(f"more than {_MAX_NODES} values")

    def _node(self, event: yaml.Event, depth: int) -> _Node:
        if depth > _MAX_DEPTH:
            self._refuse(f"nested deeper than {_MAX_DEPTH}")
        kind = type(event).__name__
        anchor: str | None = getattr(event, "anchor", None)
        if kind == "AliasEvent":
            return self._alias(anchor or "", depth)
        self._spend(1)
        if anchor is not None:
            # Known from here on and empty until it is complete: no value holds itself.
            self._anchors[anchor] = None
        tag = self._tag(event)
        match kind:
            case "ScalarEvent":
                node = _Node(self._scalar(event, tag), 1, 1)
            case "SequenceStartEvent" if tag in {"", "seq"}:
                node = self._sequence(depth)
            case "MappingStartEvent" if tag in {"", "map"}:
                node = self._mapping(depth)
            case _:
                self._refuse("a value that its tag does not fit")
        if anchor is not None:
            self._anchors[anchor] = node
        return node

    def _tag(self, event: yaml.Event) -> str:
        tag: str | None = getattr(event, "tag", None)
        if tag is None or tag == "!":
            return "str" if tag == "!" and type(event).__name__ == "ScalarEvent" else ""
        short = tag.removeprefix(_TAGS)
        if not tag.startswith(_TAGS) or short not in _CORE:
            self._refuse("a tag outside the core schema")
        return short

    def _alias(self, name: str, depth: int) -> _Node:
        found = self._anchors.get(name)
        if found is None:
            self._refuse("an alias of nothing, or of what it stands in")
        self._spend(found.nodes)
        if depth + found.depth - 1 > _MAX_DEPTH:
            self._refuse(f"nested deeper than {_MAX_DEPTH}")
        return found

    def _sequence(self, depth: int) -> _Node:
        items: list[JsonValue] = []
        nodes = deep = 0
        while type(event := next(self._events)).__name__ != "SequenceEndEvent":
            node = self._node(event, depth + 1)
            items.append(node.value)
            nodes += node.nodes
            deep = max(deep, node.depth)
        return _Node(items, nodes + 1, deep + 1)

    def _mapping(self, depth: int) -> _Node:
        members: dict[str, JsonValue] = {}
        merged: list[dict[str, JsonValue]] | None = None
        nodes = deep = 0
        while type(event := next(self._events)).__name__ != "MappingEndEvent":
            key, quoted = self._key(event)
            node = self._node(next(self._events), depth + 1)
            nodes += node.nodes + 1
            deep = max(deep, node.depth)
            if key == _MERGE and not quoted:
                if merged is not None:
                    self._refuse("a mapping merges twice")
                merged = self._merged(node.value)
            elif key in members:
                self._refuse("a mapping has a member twice")
            else:
                members[key] = node.value
        for other in merged or ():
            # From: YAML 1.1 merge keys: what is written here wins, then the earlier of several.
            members = other | members
        return _Node(members, nodes + 1, deep + 1)

    def _key(self, event: yaml.Event) -> tuple[str, bool]:
        self._spend(1)
        if type(event).__name__ != "ScalarEvent" or getattr(event, "anchor", None) is not None:
            self._refuse("a key that is not a plain value")
        if self._tag(event) not in {"", "str"}:
            self._refuse("a key with a tag")
        text = self._text(event)
        quoted = getattr(event, "style", None) in {"'", '"', "|", ">"}
        if not quoted and text in _NULL:
            self._refuse("a key that is null")
        return text, quoted

    def _text(self, event: yaml.Event) -> str:
        text: str = getattr(event, "value", "")
        # From: YAML 1.2.2 §5.1: an escape can spell half a pair, which is no character.
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            self._refuse("half a surrogate pair")
        return text

    def _merged(self, value: JsonValue) -> list[dict[str, JsonValue]]:
        sources = value if isinstance(value, list) else [value]
        found = [source for source in sources if isinstance(source, dict)]
        if len(found) != len(sources):
            self._refuse("what is merged is no mapping")
        return found

    def _scalar(self, event: yaml.Event, tag: str) -> JsonValue:
        text = self._text(event)
        quoted = getattr(event, "style", None) in {"'", '"', "|", ">"}
        if tag == "str" or (quoted and not tag):
            return text
        value = _resolved(text)
        kinds = {"null": type(None), "bool": bool, "int": int, "float": float}
        if tag and type(value) is not kinds.get(tag):
            self._refuse("a value that its tag does not fit")
        return value


def _resolved(text: str) -> JsonValue:
    """Return what a plain scalar means; a string for all that JSON cannot say."""
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _INTEGER.match(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        number = int(text[2:] if base != 10 else text, base)
        return number if abs(number) <= _MAX_SAFE_INTEGER else text
    if len(text) <= 64 and not text.lstrip("+-").isdecimal() and _FLOAT.match(text):
        value = float(text)
        return value if abs(value) <= 1e300 else text
    return text
