"""Where an agent may send data, and the record of every attempt. Pure.

docs/protocols/sandbox.md §6. A destination is an exact host and port; nothing is a pattern. The
list is the Expectation's; an empty list lets nothing out. Names are resolved by the node, and an
address that is not public is refused unless the list names that very address: an allowed name
whose owner points it at 127.0.0.1 or 169.254.169.254 must not open the node's own neighbourhood.

What is not done here: no resolving, no connecting; TLS inside a tunnel is the agent's own.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from confide.errors import FormatError, Reason

__all__ = [
    "Address",
    "Destination",
    "EgressAttempt",
    "EgressKind",
    "EgressOutcome",
    "EgressPolicy",
    "parse_destination",
    "printable_destination",
]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_CLAUSE = "sandbox.md §6"
# From: RFC 1123 §2.1 and RFC 1035 §2.3.4.
_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
    r"(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*\Z"
)
# A name of 253 characters with its final dot, a colon, a port; printable ones are cut there.
_MAX_SHOWN_CHARS = 262


@dataclass(frozen=True, slots=True)
class Destination:
    """An exact `host` (lower-case name, or an IP literal without brackets) and `port`."""

    host: str
    port: int

    @property
    def literal(self) -> Address | None:
        """The address, when the host is an IP literal."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_destination(text: str) -> Destination:
    """
    Parse `host:port`, `192.0.2.1:443` or `[2001:db8::1]:443`.

    Names are folded to lower case, addresses to their canonical spelling; a numeric form that
    is not a canonical address (`0x7f.1`, `2130706433`) is refused. Raises `FormatError`.
    """
    # Before any pattern runs: the text may be as long as a request head.
    if len(text) > _MAX_SHOWN_CHARS:
        raise _refusal(f"more than {_MAX_SHOWN_CHARS} characters")
    host, colon, port_text = text.rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdecimal() or len(port_text) > 5:
        raise _refusal("not host:port")
    port = int(port_text)
    if not 0 < port < 65536:
        raise _refusal("the port is not from 1 to 65535")
    if host.startswith("[") and host.endswith("]"):
        return Destination(str(_address(host[1:-1])), port)
    host = host.lower().removesuffix(".")
    if re.fullmatch(r"[0-9a-fx.]*\.?(?:0x[0-9a-f]*|[0-9]+)", host):
        return Destination(str(_address(host)), port)
    if not _HOST.match(host):
        raise _refusal("the host is neither a name nor an address")
    return Destination(host, port)


def _address(text: str) -> Address:
    # A scope id would carry text of the agent's choice, and names an interface nobody has.
    if "%" in text:
        raise _refusal("an address with a scope")
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise _refusal("not a canonical IP address") from error


def _refusal(why: str) -> FormatError:
    return FormatError(f"destination: {why}", reason=Reason.PROXY_FORMAT, clause=_CLAUSE)


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """The allow-list of one run, as the Expectation states it. Empty refuses everything."""

    allowed: tuple[Destination, ...]

    def permits(self, destination: Destination) -> bool:
        """Whether exactly this host and port is on the list."""
        return destination in self.allowed

    def permits_address(self, destination: Destination, address: Address) -> bool:
        """
        Whether `destination`, already permitted, may be reached at `address`.

        True for public addresses, and for any address that the list names literally.
        """
        literal = destination.literal
        if literal is not None:
            return self.permits(destination) and literal == address
        mapped = getattr(address, "ipv4_mapped", None)
        real: Address = mapped if mapped is not None else address
        return real.is_global and not real.is_multicast


class EgressKind(StrEnum):
    """How the agent tried: through the proxy (tunnel, plain HTTP), by DNS, or directly."""

    CONNECT = "connect"
    HTTP = "http"
    DNS = "dns"
    DIRECT = "direct"


class EgressOutcome(StrEnum):
    """What became of an attempt. OPENED is reported before data flows, the rest at the end."""

    REFUSED = "refused"
    OPENED = "opened"
    CLOSED = "closed"
    UNREACHABLE = "unreachable"
    ADDRESS_REFUSED = "address-refused"


@dataclass(frozen=True, slots=True)
class EgressAttempt:
    """
    One attempt of the agent to reach something.

    `number` counts from 1 within a run; an allowed connection is reported twice under one
    number, OPENED and then its end. `destination` is printable. Bytes count payload only.
    """

    number: int
    kind: EgressKind
    destination: str
    outcome: EgressOutcome
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def allowed(self) -> bool:
        """Whether the list permitted it."""
        return self.outcome in {
            EgressOutcome.OPENED,
            EgressOutcome.CLOSED,
            EgressOutcome.UNREACHABLE,
        }


def printable_destination(text: str) -> str:
    """Return hostile `text` fit for a transcript: letters, digits, `.-_:[]`, at most 262."""
    shown = re.sub(r"[^A-Za-z0-9.\-_:\[\]]", "?", text[:_MAX_SHOWN_CHARS])
    return shown or "?"
