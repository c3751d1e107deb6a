"""The list of nodes, and a directory that was signed elsewhere. docs/protocols/relay.md §4.7."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from nodes import NOW, FixedClock
from relay_world import KEYSET, SIGNER, entry

from confide.channel.directory import sign_directory, verify_directory
from confide.errors import ConfigurationError, FormatError
from confide.node.relay_directory import OwnDirectory, SignedFile, next_directory
from confide.node.relay_nodes import parse_relay_nodes
from confide.node.relay_table import RelayTable
from confide.wire.json import jcs

if TYPE_CHECKING:
    from pathlib import Path

NODE: dict[str, Any] = {
    "url": "https://n.example/",
    "role": "model",
    "model": "m",
    "roots": "vendor",
}


def file_of(*nodes: dict[str, Any], **more: Any) -> bytes:
    return jcs({"type": "confide/relay-nodes/v1", "nodes": list(nodes), **more})


def test_an_entry_may_pin_its_keyset() -> None:
    agent = {"url": "http://a.example", "role": "agent", "roots": "vendor", "keyset": "ab" * 32}
    first, second = parse_relay_nodes(file_of(NODE, agent))
    assert (first.url, first.pinned) == ("https://n.example", None)
    assert (second.model, second.pinned) == ("", b"\xab" * 32)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        file_of(),
        file_of(NODE, NODE),
        file_of(NODE, more=1),
        file_of({**NODE, "more": 1}),
        file_of({**NODE, "model": ""}),
        file_of({**NODE, "role": "agent"}),
        file_of({**NODE, "roots": ""}),
        file_of({**NODE, "keyset": "ab"}),
        file_of({**NODE, "keyset": "ab" * 32}, {**NODE, "url": "http://o", "keyset": "ab" * 32}),
        *(
            file_of({**NODE, "url": url})
            for url in ("n.example", "file:///x", "http://u:p@n", "http://n?a", "http://n:0", "http://")
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_list_of_nodes_is_refused(raw: bytes) -> None:
    with pytest.raises(ConfigurationError):
        parse_relay_nodes(raw)


async def _nobody(_url: str) -> bytes | None:
    return None


def test_its_own_directory_is_signed_anew_in_time_and_never_goes_back() -> None:
    clock = FixedClock(NOW)
    table = RelayTable([entry("http://n", pinned=KEYSET)], ask=_nobody)
    own = OwnDirectory(table, SIGNER, clock=clock)
    first = own.current()
    assert first is not None
    assert own.current() is first
    for change in (timedelta(minutes=31), -timedelta(days=1)):
        before = own.current()
        clock.time += change
        after = own.current()
        assert before is not None
        assert after is not None
        assert after.directory.sequence > before.directory.sequence
        verify_directory(
            after.note.encode(), key=SIGNER.key, now=clock.time, floor=before.directory.sequence
        )


def test_without_a_known_keyset_there_is_no_directory() -> None:
    table = RelayTable([entry("http://n")], ask=_nobody)
    assert OwnDirectory(table, SIGNER, clock=FixedClock(NOW)).current() is None


def test_a_file_that_is_no_directory_does_not_start_a_relay(tmp_path: Path) -> None:
    file = tmp_path / "directory"
    file.write_bytes(b"no")
    with pytest.raises(FormatError):
        SignedFile(file, report=print)
    table = RelayTable([entry("http://n", pinned=KEYSET)], ask=_nobody)
    made = next_directory(table.listed(), now=NOW, lifetime=timedelta(hours=1))
    file.write_bytes(sign_directory(made, SIGNER))
    found = SignedFile(file, report=print).current()
    assert found is not None
    assert found.directory == made
