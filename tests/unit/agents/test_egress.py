"""Destinations, the allow-list, proxy heads, DNS questions and dead packets."""

from __future__ import annotations

import ipaddress

import pytest

from confide.agents.dns import parse_question, refuse_question
from confide.agents.egress import EgressPolicy, parse_destination, printable_destination
from confide.agents.environment import agent_environment
from confide.agents.packets import parse_dead_packet
from confide.agents.proxy_head import parse_proxy_head
from confide.errors import FormatError

_POLICY = EgressPolicy((parse_destination("api.example.org:443"), parse_destination("10.0.0.7:80")))


def test_only_the_exact_destination_is_permitted() -> None:
    assert _POLICY.permits(parse_destination("API.Example.org.:443"))
    for other in ("api.example.org:80", "example.org:443", "x.api.example.org:443",
                  "api.example.org.evil.net:443", "10.0.0.8:80"):  # fmt: skip
        assert not _POLICY.permits(parse_destination(other))
    assert not EgressPolicy(()).permits(parse_destination("api.example.org:443"))


@pytest.mark.parametrize(
    ("address", "permitted"),
    [("93.184.216.34", True), ("127.0.0.1", False), ("10.0.0.7", False), ("169.254.169.254", False),
     ("::1", False), ("fe80::1", False), ("fd00::1", False), ("::ffff:127.0.0.1", False),
     ("100.64.0.1", False), ("224.0.0.1", False), ("0.0.0.0", False),  # noqa: S104
     ("2606:4700::1", True), ("::ffff:8.8.8.8", True)],
)  # fmt: skip
def test_a_name_may_only_lead_to_public_addresses(address: str, *, permitted: bool) -> None:
    name = parse_destination("api.example.org:443")
    assert _POLICY.permits_address(name, ipaddress.ip_address(address)) is permitted


def test_a_private_address_may_be_named_literally() -> None:
    literal = parse_destination("10.0.0.7:80")
    assert _POLICY.permits_address(literal, ipaddress.ip_address("10.0.0.7"))
    assert not _POLICY.permits_address(literal, ipaddress.ip_address("10.0.0.8"))
    other = parse_destination("10.0.0.9:80")
    assert not _POLICY.permits_address(other, ipaddress.ip_address("10.0.0.9"))


@pytest.mark.parametrize(
    "text",
    ["", "host", "host:", ":80", "host:0", "host:65536", "host:8o", "host:٣", "2130706433:80",
     "0x7f.1:80", "0177.0.0.1:80", "127.1:80", "a b:80", "a/b:80", "user@host:80", "[::1:80",
     "::1:80", "-a:80", "a..b:80", "[fe80::1%lo]]:80"],
)  # fmt: skip
def test_a_destination_is_never_guessed(text: str) -> None:
    with pytest.raises(FormatError):
        parse_destination(text)


def test_addresses_are_canonical() -> None:
    assert str(parse_destination("[2001:DB8::0:1]:443")) == "[2001:db8::1]:443"


def test_connect_and_plain_requests() -> None:
    tunnel = parse_proxy_head(b"CONNECT api.example.org:443 HTTP/1.1\r\nHost: other:1\r\n\r\n")
    assert (tunnel.tunnel, str(tunnel.destination)) == (True, "api.example.org:443")
    plain = parse_proxy_head(
        b"POST http://api.example.org/v1?q=1 HTTP/1.1\r\nHost: evil.net\r\n"
        b"Proxy-Authorization: x\r\nConnection: keep-alive\r\nX-A: b\r\n\r\n"
    )
    assert str(plain.destination) == "api.example.org:80"
    assert plain.forward == (
        b"POST /v1?q=1 HTTP/1.1\r\nHost: api.example.org\r\nX-A: b\r\nConnection: close\r\n\r\n"
    )


@pytest.mark.parametrize(
    "raw",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"CONNECT a:443 HTTP/1.1\r\n", b"CONNECT a HTTP/1.1\r\n\r\n",
     b"CONNECT a:443 HTTP/2\r\n\r\n", b"GET http://a@b:80/ HTTP/1.1\r\n\r\n",
     b"GET http://a/ HTTP/1.1\r\n folded: x\r\n\r\n",
     b"GET http://a/ HTTP/1.1\r\nX: a\nY: b\r\n\r\n",
     b"GET  http://a/ HTTP/1.1\r\n\r\n", b"GET https://a/ HTTP/1.1\r\n\r\n",
     b"G\x00T http://a/ HTTP/1.1\r\n\r\n", b"GET http://\xff/ HTTP/1.1\r\n\r\n",
     b"GET http://a/ HTTP/1.1\r\nX: " + b"a" * 20000 + b"\r\n\r\n"],
)  # fmt: skip
def test_a_head_is_never_guessed(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_proxy_head(raw)


def test_dns_is_answered_with_no_such_name() -> None:
    question = bytes.fromhex("abcd01000001000000000000") + b"\x07example\x03org\x00\x00\x01\x00\x01"
    assert parse_question(question) == "example.org"
    answer = refuse_question(question)
    assert answer[:2] == question[:2]
    assert int.from_bytes(answer[2:4], "big") == 0x8183
    assert answer[12:] == question[12:]


@pytest.mark.parametrize("cut", range(29))
def test_a_cut_dns_question_is_refused(cut: int) -> None:
    question = bytes.fromhex("abcd01000001000000000000") + b"\x07example\x03org\x00\x00\x01\x00\x01"
    with pytest.raises(FormatError):
        parse_question(question[:cut])


def _v4(protocol: int, payload: bytes) -> bytes:
    head = bytes([0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0]) + bytes([10, 0, 0, 1])
    return head + bytes([1, 2, 3, 4]) + payload


def _v6(protocol: int, payload: bytes) -> bytes:
    address = ipaddress.ip_address("2606:4700::1").packed
    return bytes([0x60, 0, 0, 0, 0, 0, protocol, 64]) + address + address + payload


_SYN = bytes.fromhex("9000 01bb 00000000 00000000 50 02".replace(" ", ""))
_ACK = _SYN[:-1] + b"\x12"


@pytest.mark.parametrize(
    ("raw", "seen"),
    [(_v4(6, _SYN), "1.2.3.4:443"), (_v4(6, _ACK), None), (_v4(17, _SYN), "1.2.3.4:443"),
     (_v4(1, b"\x08"), "1.2.3.4"), (_v4(1, b"\x03"), None), (_v4(47, b""), "1.2.3.4"),
     (_v6(6, _SYN), "[2606:4700::1]:443"), (_v6(58, b"\x80"), "2606:4700::1"),
     (_v4(6, b"\x90"), None), (b"", None), (b"\x50", None)],
)  # fmt: skip
def test_dead_packets_tell_where_they_wanted_to_go(raw: bytes, seen: str | None) -> None:
    assert parse_dead_packet(raw) == seen


def test_what_is_shown_cannot_break_a_line() -> None:
    assert printable_destination("a\nb\x1b[31m" + "x" * 999).startswith("a?b?[31m")
    assert len(printable_destination("x" * 999)) == 262
    assert printable_destination("") == "?"


def test_the_environment_points_inwards_and_switches_telemetry_off() -> None:
    found = dict(agent_environment(token="t", model="m"))
    assert found["OPENAI_BASE_URL"] == found["OPENAI_API_BASE"] == "http://127.0.0.1:8080/v1"
    assert found["OPENAI_API_KEY"] == "t"
    assert found["OPENAI_AGENTS_DISABLE_TRACING"] == "1"
    assert found["LANGSMITH_TRACING"] == found["LANGCHAIN_TRACING_V2"] == "false"
    assert found["HTTPS_PROXY"] == found["https_proxy"] == "http://127.0.0.1:3128"
    assert "127.0.0.1" in found["NO_PROXY"].split(",")


def test_a_destination_of_a_whole_request_head_is_refused_before_any_pattern_runs() -> None:
    longest = "a." * 126 + "a.:65535"
    assert parse_destination(longest).port == 65535
    with pytest.raises(FormatError, match="more than 262 characters"):
        parse_destination("1" * 259 + "z:80")
    with pytest.raises(FormatError, match="more than 262 characters"):
        parse_proxy_head(b"CONNECT " + b"1" * 16_000 + b"z:80 HTTP/1.1\r\n\r\n")
