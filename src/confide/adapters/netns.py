"""A network namespace that leads nowhere, with the node listening inside.

docs/protocols/sandbox.md §5. A thread of the node steps into a new namespace, makes the sockets
and ends; the sockets stay in that namespace while the event loop of the node serves them. Inside
there is one interface, `lo`. Every address is routed to it and answered by nobody, so that an
attempt fails at once and can be seen; nothing can be forwarded, because there is nowhere to.

Needs the privilege to make namespaces (a node in its CVM has it).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confide.adapters.linux import CLONE_NEWNET, setns, unshare
from confide.agents.environment import MODEL_PORT, PROXY_PORT
from confide.errors import ConfigurationError, Unavailable
from confide.ports import NetworkEndpoints

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Namespace", "join_namespace", "open_namespace"]

_DNS_PORT = 53
# From: the manual pages netdevice(7).
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
# From: the manual pages rtnetlink(7).
_RTM_NEWROUTE, _NLM_REQUEST_ACK_CREATE = 24, 0x0001 | 0x0004 | 0x0400
_TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL, _ATTR_OIF = 255, 4, 254, 2, 4
# From: the manual pages packet(7) and socket(7).
_ETH_P_ALL, _PACKET_OUTGOING = 3, 4
_SO_ATTACH_FILTER = 26
_SEEN_BYTES = 96
# An engine switches IPv6 off in a namespace without a network. On again, an attempt to use it can
# be seen. From: the kernel's networking/ip-sysctl.rst, "disable_ipv6".
_IPV6_SWITCHES = tuple(
    Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6") for name in ("all", "default", "lo")
)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace held open by `fd`; `path` is how an engine of this machine can join it."""

    fd: int
    endpoints: NetworkEndpoints

    @property
    def path(self) -> str:
        """A path that names the namespace while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        """Close sockets and namespace."""
        self.endpoints.close()
        with contextlib.suppress(OSError):
            os.close(self.fd)


def open_namespace() -> Namespace:
    """
    Make a namespace and the node's sockets in it. Blocks for about a millisecond.

    `ConfigurationError` without the privilege; `Unavailable` where the kernel refuses otherwise.
    """
    return _in_a_thread(lambda: unshare(CLONE_NEWNET))


def join_namespace(namespace: int) -> Namespace:
    """
    Make the node's sockets in the namespace open as `namespace`; it must hold `lo` and no more.

    Raises like `open_namespace`.
    """

    def enter() -> None:
        setns(namespace, CLONE_NEWNET)
        if [name for _index, name in socket.if_nameindex()] != ["lo"]:
            raise Unavailable("network namespace: it has an interface that leads somewhere")
        for switch in _IPV6_SWITCHES:
            if switch.exists():
                switch.write_text("0", encoding="ascii")

    return _in_a_thread(enter)


def _in_a_thread(enter: Callable[[], None]) -> Namespace:
    made: list[Namespace] = []
    failed: list[OSError | Unavailable] = []

    def work() -> None:
        try:
            enter()
            made.append(_furnish())
        except (OSError, Unavailable) as error:
            failed.append(error)

    # A thread of its own: the namespace is a property of the thread and must end with it.
    thread = threading.Thread(target=work, name="confide-netns")
    thread.start()
    thread.join()
    if made:
        return made[0]
    error = failed[0]
    if isinstance(error, Unavailable):
        raise error
    if isinstance(error, PermissionError):
        raise ConfigurationError(
            "agents need their own network namespace, and this process may not make one: "
            "run the node as root of its machine (in a CVM that is the normal case)"
        ) from error
    raise Unavailable(f"network namespace: {error.strerror}") from error


def _furnish() -> Namespace:
    opened: list[socket.socket] = []
    fd = -1
    try:
        _bring_up_loopback()
        _route_everything_to_loopback(socket.AF_INET)
        # A kernel without IPv6 has no such route, and nothing to keep in.
        with contextlib.suppress(OSError):
            _route_everything_to_loopback(socket.AF_INET6)
        opened.append(_listener(MODEL_PORT))
        opened.append(_listener(PROXY_PORT))
        opened.append(_datagrams())
        opened.append(_watcher())
        fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        for end in opened:
            end.close()
        raise
    model, proxy, dns, direct = opened
    return Namespace(fd, NetworkEndpoints(model=model, proxy=proxy, dns=dns, direct=direct))


def _listener(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.bind(("127.0.0.1", port))
    made.listen(128)
    made.setblocking(False)  # noqa: FBT003 - the socket's own signature
    return made


def _datagrams() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind(("127.0.0.1", _DNS_PORT))
    made.setblocking(False)  # noqa: FBT003 - the socket's own signature
    return made


def _bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _route_everything_to_loopback(family: int) -> None:
    # From: rtnetlink(7). A rtmsg without destination, then one attribute: the interface.
    route = struct.pack(
        "=BBBBBBBBI", family, 0, 0, 0, _TABLE_LOCAL, _PROTOCOL_STATIC, _SCOPE_HOST, _TYPE_LOCAL, 0
    )
    route += struct.pack("=HHI", 8, _ATTR_OIF, socket.if_nametoindex("lo"))
    header = struct.pack("=IHHII", 16 + len(route), _RTM_NEWROUTE, _NLM_REQUEST_ACK_CREATE, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as control:
        control.settimeout(5)
        control.send(header + route)
        answer = control.recv(4096)
    code = struct.unpack_from("=i", answer, 16)[0]
    if code != 0:
        raise OSError(-code, os.strerror(-code))


def _watcher() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
    steps = _filter()
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    pointer = struct.pack("HP", len(steps), ctypes.addressof(program))
    made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, pointer)
    made.bind(("lo", _ETH_P_ALL))
    made.setblocking(False)  # noqa: FBT003 - the socket's own signature
    return made


def _filter() -> tuple[tuple[int, int, int, int], ...]:
    # Classic BPF (linux/filter.h): keep what leaves for an address outside 127.0.0.0/8 and ::1.
    load_byte, load_word, jump_equal, keep = 0x30, 0x20, 0x15, 0x06
    and_mask = 0x54
    packet_type = 0xFFFFF000 + 4
    return (
        (load_word, 0, 0, packet_type),
        (jump_equal, 0, 15, _PACKET_OUTGOING),
        (load_byte, 0, 0, 0),
        (and_mask, 0, 0, 0xF0),
        (jump_equal, 0, 2, 0x40),  # IPv4?
        (load_byte, 0, 0, 16),
        (jump_equal, 10, 9, 127),
        (jump_equal, 0, 9, 0x60),  # IPv6?
        (load_word, 0, 0, 24),
        (jump_equal, 0, 6, 0),
        (load_word, 0, 0, 28),
        (jump_equal, 0, 4, 0),
        (load_word, 0, 0, 32),
        (jump_equal, 0, 2, 0),
        (load_word, 0, 0, 36),
        (jump_equal, 1, 0, 1),
        (keep, 0, 0, _SEEN_BYTES),
        (keep, 0, 0, 0),
    )
