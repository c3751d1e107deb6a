"""What a packet that went nowhere was meant for. Pure.

RFC 791 §3.1, RFC 8200 §3, RFC 9293 §3.1, RFC 768. In the agent's namespace every address but
127.0.0.1 and ::1 is a dead end; the node sees the packets that reach it and records where they
wanted to go. Hostile bytes: a packet that cannot be read gives None, never an error.
"""

from __future__ import annotations

import ipaddress

from confide.errors import FormatError, Reason
from confide.wire.reader import Reader

__all__ = ["parse_dead_packet"]

_TCP, _UDP, _ICMP, _ICMP6 = 6, 17, 1, 58  # From: IANA Assigned Internet Protocol Numbers
_SYN, _ACK = 0x02, 0x10  # From: RFC 9293 §3.1
_ECHO = {_ICMP: 8, _ICMP6: 128}  # From: RFC 792 and RFC 4443 §4.1


def parse_dead_packet(raw: bytes) -> str | None:
    """
    Return `address:port` or `address` for the first packet of an attempt, None for the rest.

    Attempts are a TCP SYN, a UDP datagram, an echo request, or any other protocol.
    """
    reader = Reader(raw, what="packet", clause="RFC 791 §3.1", truncated=Reason.PROXY_FORMAT)
    try:
        first = reader.u8()
        if first >> 4 == 4:
            return _read_v4(reader, header=4 * (first & 15))
        if first >> 4 == 6:
            return _read_v6(reader)
    except FormatError:
        return None
    return None


def _read_v4(reader: Reader, *, header: int) -> str | None:
    reader.take(8)
    protocol = reader.u8()
    reader.take(6)
    address = ipaddress.IPv4Address(reader.take(4))
    reader.take(max(0, header - 20))
    return _read_payload(reader, protocol, str(address), str(address))


def _read_v6(reader: Reader) -> str | None:
    reader.take(5)
    protocol = reader.u8()
    reader.take(17)
    address = ipaddress.IPv6Address(reader.take(16))
    if address.is_multicast:  # The kernel's own listener reports.
        return None
    return _read_payload(reader, protocol, str(address), f"[{address}]")


def _read_payload(reader: Reader, protocol: int, bare: str, bracketed: str) -> str | None:
    if protocol in _ECHO:
        return bare if reader.u8() == _ECHO[protocol] else None
    if protocol not in {_TCP, _UDP}:
        return bare
    reader.take(2)
    port = reader.uint(2, "big")
    if protocol == _TCP:
        reader.take(9)
        if reader.u8() & (_SYN | _ACK) != _SYN:
            return None
    return f"{bracketed}:{port}"
