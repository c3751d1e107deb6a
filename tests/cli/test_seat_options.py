"""How `confide node train` is told of other training nodes."""

from __future__ import annotations

import pytest

from confide.cli.seats import parse_invited, parse_link
from confide.errors import ConfigurationError
from confide.node.seat_party import InvitedNode


@pytest.mark.parametrize(
    ("word", "url", "ranks"),
    [
        ("http://10.0.0.2:8443", "http://10.0.0.2:8443", 1),
        ("https://second.example=4", "https://second.example", 4),
    ],
)
def test_a_node_is_named_with_its_ranks(word: str, url: str, ranks: int) -> None:
    assert parse_invited(word) == InvitedNode(url, ranks)


@pytest.mark.parametrize(
    "word", ["", "second:8443", "http://a=", "http://a=0", "http://a=-1", "http://a=1=2", "http://"]
)
def test_what_names_no_node_is_refused(word: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_invited(word)


@pytest.mark.parametrize(
    ("word", "link"),
    [
        ("10.0.0.2", ("10.0.0.2", 0)),
        ("second.example:9000", ("second.example", 9000)),
        ("[fd00::2]:9000", ("fd00::2", 9000)),
        ("[fd00::2]", ("fd00::2", 0)),
    ],
)
def test_a_link_has_a_host_and_perhaps_a_port(word: str, link: tuple[str, int]) -> None:
    assert parse_link(word) == link


@pytest.mark.parametrize("word", ["", ":9000", "a:b", "fd00::2", "a:70000", "a b", "a:1:2"])
def test_what_is_no_address_is_refused(word: str) -> None:
    with pytest.raises(ConfigurationError, match="--seat-address"):
        parse_link(word)
