"""Outputs for a recipient: opened by its key, for its run and path, and by nothing else."""

from __future__ import annotations

import pytest

from confide.agents.recipients import Recipient, open_output, parse_recipients, seal_output
from confide.crypto.kem import load_private_key
from confide.errors import EvidenceRejected, Reason
from confide.wire.ohttp import Kem

PRIVATE = bytes(range(32))
RUN = b"r" * 32


def _sealed(data: bytes = b"the output") -> bytes:
    recipient = Recipient(load_private_key(Kem.X25519, PRIVATE).public_key.raw)
    return seal_output(recipient, data, run=RUN, path="a/b.csv", ephemeral=b"e" * 32)


def test_the_recipient_opens_what_was_sealed_to_it() -> None:
    assert open_output(PRIVATE, _sealed(), run=RUN, path="a/b.csv") == b"the output"


@pytest.mark.parametrize(
    ("private", "run", "path"),
    [
        (b"x" * 32, RUN, "a/b.csv"),
        (PRIVATE, b"s" * 32, "a/b.csv"),
        (PRIVATE, RUN, "a/c.csv"),
    ],
    ids=["another key", "another run", "another path"],
)
def test_anything_else_is_refused(private: bytes, run: bytes, path: str) -> None:
    with pytest.raises(EvidenceRejected) as refusal:
        open_output(private, _sealed(), run=run, path=path)
    assert refusal.value.reason is Reason.OUTPUT_MISMATCH


@pytest.mark.parametrize("at", [0, 31, 32, 40, -1])
def test_a_changed_byte_is_refused(at: int) -> None:
    sealed = bytearray(_sealed())
    sealed[at] ^= 1
    with pytest.raises(EvidenceRejected):
        open_output(PRIVATE, bytes(sealed), run=RUN, path="a/b.csv")


def test_the_ciphertext_holds_no_plaintext() -> None:
    assert b"the output" not in _sealed()


def test_recipients_of_an_expectation() -> None:
    caller, others = parse_recipients(("caller", "x25519:" + "11" * 32))
    assert caller
    assert others == (Recipient(b"\x11" * 32),)
    assert parse_recipients(("x25519:" + "22" * 32,))[0] is False
