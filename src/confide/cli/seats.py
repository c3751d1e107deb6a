"""How the command line names other training nodes, and the port for their links."""

from __future__ import annotations

import re
from typing import Final

from confide.adapters.http_client import require_node_url
from confide.errors import ConfigurationError
from confide.node.seat_party import InvitedNode

__all__ = ["parse_invited", "parse_link"]

_RANKS: Final = re.compile(r"[1-9][0-9]{0,3}\Z")
# A name, an IPv4 address, or an IPv6 one in brackets.
_LINK: Final = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9.-]{1,253})(?::([0-9]{1,5}))?\Z")
_MAX_PORT: Final = 65535


def parse_invited(word: str) -> InvitedNode:
    """Read URL[=RANKS], one rank unless said. Raises `ConfigurationError`."""
    url, equals, ranks = word.partition("=")
    if equals and not _RANKS.match(ranks):
        raise ConfigurationError("--seat: URL, or URL=RANKS with a number of ranks above 0")
    require_node_url(url)
    return InvitedNode(url, int(ranks or 1))


def parse_link(word: str) -> tuple[str, int]:
    """Read HOST[:PORT], any port unless said. Raises `ConfigurationError`."""
    found = _LINK.match(word)
    if found is None or int(found[2] or 0) > _MAX_PORT:
        raise ConfigurationError("--seat-address: HOST or HOST:PORT; IPv6 in brackets")
    return found[1].strip("[]"), int(found[2] or 0)
