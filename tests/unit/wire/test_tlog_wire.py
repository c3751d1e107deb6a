"""Notes, keys, checkpoints, tiles, proofs, requests, policies: one spelling each. log.md §2, §3."""

from __future__ import annotations

import log_world as world
import pytest
from log_world import LOG, NOW, WITNESSES, signed

from confide.crypto.cosign import NoteSigner, load_signer, verify_note_signature
from confide.errors import FormatError, Reason
from confide.wire.checkpoint import Checkpoint, parse_checkpoint, parse_timestamped
from confide.wire.note import (
    PrivateKeyText,
    SignatureType,
    VerifierKey,
    parse_note,
    parse_private_key,
    parse_verifier_key,
)
from confide.wire.tiles import (
    ENTRIES,
    TilePath,
    encode_bundle,
    parse_bundle,
    parse_tile,
    parse_tile_path,
)
from confide.wire.tlog_policy import parse_log_policy
from confide.wire.tlog_proof import TlogProof, parse_tlog_proof
from confide.wire.witness import AddCheckpoint, parse_add_checkpoint, parse_size_body

HEAD = Checkpoint(world.ORIGIN, 7, b"r" * 32)
CHECKPOINT = signed(HEAD, *WITNESSES)
RAW = CHECKPOINT.encode()


def test_a_checkpoint_reads_back_as_it_was_written() -> None:
    found = parse_checkpoint(RAW)
    assert found == CHECKPOINT
    assert found.encode() == RAW
    assert RAW.startswith(b"log.example/confide\n7\n")


def test_text_with_an_empty_line_ends_at_the_last_one() -> None:
    note = parse_note(b"a\n\nb\n\n\xe2\x80\x94 k AAAAAAE=\n")
    assert note.text == "a\n\nb\n"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"\n\n\xe2\x80\x94 k AAAAAAE=\n",
        b"text\n\n\xe2\x80\x94 k AAAAAAE=",
        b"text\n\n\xe2\x80\x94 k AAAAAAE=\n\n",
        b"text\n\n- k AAAAAAE=\n",
        b"text\n\n\xe2\x80\x94  AAAAAAE=\n",
        b"text\n\n\xe2\x80\x94 k+ AAAAAAE=\n",
        b"text\n\n\xe2\x80\x94 k\xe2\x80\x83k AAAAAAE=\n",
        b"text\n\n\xe2\x80\x94 k AAAAAAE\n",
        b"text\n\n\xe2\x80\x94 k AAAAAAF=\n",
        b"text\n\n\xe2\x80\x94 k AAAA AAE=\n",
        b"text\n\n\xe2\x80\x94 k AAAAAA==\n",
        b"te\txt\n\n\xe2\x80\x94 k AAAAAAE=\n",
        b"te\rxt\n\n\xe2\x80\x94 k AAAAAAE=\n",
        b"te\xffxt\n\n\xe2\x80\x94 k AAAAAAE=\n",
        b"text\n\n" + b"\xe2\x80\x94 k AAAAAAE=\n" * 65,
        b"t" * (1 << 20) + b"\n\n\xe2\x80\x94 k AAAAAAE=\n",
    ],
)
def test_what_is_no_note_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_note(raw)
    assert caught.value.reason is Reason.TLOG_FORMAT


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\n7\n", b"\n07\n"),
        (b"\n7\n", b"\n+7\n"),
        (b"\n7\n", b"\n-7\n"),
        (b"\n7\n", b"\n 7\n"),
        (b"\n7\n", b"\n\n"),
        (b"\n7\n", b"\n\xd9\xa7\n"),
        (b"\n7\n", b"\n9223372036854775808\n"),
        (b"\n7\n", b"\n" + b"9" * 5000 + b"\n"),
        (b"cnJy", b"cnJycnJy"),
        (b"\n7\n", b"\n"),
    ],
)
def test_what_is_no_checkpoint_is_refused(old: bytes, new: bytes) -> None:
    assert RAW.count(old) >= 1
    with pytest.raises(FormatError):
        parse_checkpoint(RAW.replace(old, new, 1))


def test_extension_lines_are_kept_and_signed() -> None:
    head = Checkpoint(world.ORIGIN, 7, b"r" * 32, ("more",))
    found = parse_checkpoint(signed(head).encode())
    assert found.head.extensions == ("more",)
    assert verify_note_signature(LOG.key, found.note.signatures[0], found) is None
    long = Checkpoint(world.ORIGIN, 7, b"r" * 32, ("more",) * 17)
    with pytest.raises(FormatError):
        parse_checkpoint(signed(long).encode())


@pytest.mark.parametrize("signer", [LOG, *WITNESSES], ids=lambda each: each.key.kind.name)
def test_keys_read_back_and_their_ids_are_recomputed(signer: NoteSigner) -> None:
    text = signer.key.encode()
    assert parse_verifier_key(text) == signer.key
    name, number, rest = text.split("+", 2)
    for broken in (
        f"{name}+{int(number, 16) ^ 1:08x}+{rest}",
        f"{name}x+{number}+{rest}",
        f"{name}+{number.upper()}x+{rest}",
        f"+{number}+{rest}",
        f"{name}+{number}",
        f"{name}+{number}+{rest[:-4]}",
        f"{name}+{number}+",
        f"{name}+{number}+Ag==",
    ):
        with pytest.raises(FormatError):
            parse_verifier_key(broken)


def test_a_known_key_id() -> None:
    # From: the example key of Go's note package.
    text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    key = parse_verifier_key(text)
    assert (key.name, key.kind, key.key_id.hex()) == ("PeterNeumann", 1, "c74f20a3")


def test_private_keys_read_back_and_are_not_shown() -> None:
    seed = b"\x07" * 32
    signer = NoteSigner("witness.example/a", SignatureType.COSIGNATURE, seed)
    private = PrivateKeyText(signer.key.name, signer.key.kind, signer.key.key_id, seed)
    assert load_signer(private.encode()).key == signer.key
    assert "07" * 32 not in repr(private)
    assert repr(seed) not in repr(private)
    text = private.encode()
    for broken in (text[:-1], text[1:], text.replace("witness", "w"), "", "PRIVATE+KEY+a+b"):
        with pytest.raises(FormatError) as caught:
            load_signer(broken)
        assert "BwcH" not in str(caught.value)
    with pytest.raises(FormatError):
        parse_private_key(text.replace("+BAcH", "+CQcH"))


def test_roles_are_kept_apart() -> None:
    with pytest.raises(ValueError, match="a log signs"):
        WITNESSES[0].sign_checkpoint(HEAD)
    with pytest.raises(ValueError, match="a witness signs"):
        LOG.cosign(HEAD, seconds=1)


def test_cosignatures_have_a_time_of_64_bits() -> None:
    assert parse_timestamped((5).to_bytes(8, "big") + b"s") == (5, b"s")
    for blob in (b"", bytes(8), b"\x80" + bytes(71)):
        with pytest.raises(FormatError):
            parse_timestamped(blob)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (TilePath(0, 0), "tile/0/000"),
        (TilePath(1, 1234067), "tile/1/x001/x234/067"),
        (TilePath(63, 5, 255), "tile/63/005.p/255"),
        (TilePath(ENTRIES, 1000, 1), "tile/entries/x001/000.p/1"),
    ],
)
def test_tile_paths(path: TilePath, text: str) -> None:
    assert str(path) == text
    assert parse_tile_path(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "tile/00/000", "tile/64/000", "tile/-1/000", "tile/0/0", "tile/0/0000", "tile/0/x000/000",
        "tile/0/001/067", "tile/0/x001", "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01",
        "tile/0/000.p/", "tile/0/000.p/999", "tile/0/000/", "/tile/0/000", "tile/0/../000",
        "tile/0/x/../000",
        "tile/0/000\n", "tile/0/\u0660\u0660\u0660", "tile/entrie/000", "tile//000", "",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
    ],
)  # fmt: skip
def test_no_other_spelling_is_a_tile(text: str) -> None:
    with pytest.raises(FormatError):
        parse_tile_path(text)


def test_a_tree_covers_its_own_tiles_only() -> None:
    # The example of tlog-tiles: 70,000 entries.
    for path, covered in (
        (TilePath(0, 272), True), (TilePath(0, 273, 112), True), (TilePath(0, 273, 113), False),
        (TilePath(0, 273), False), (TilePath(1, 0), True), (TilePath(1, 1, 17), True),
        (TilePath(1, 1, 18), False), (TilePath(2, 0, 1), True), (TilePath(2, 0, 2), False),
        (TilePath(3, 0, 1), False), (TilePath(ENTRIES, 273, 112), True),
        (TilePath(ENTRIES, 273), False),
    ):  # fmt: skip
        assert path.covered_by(70_000) is covered, path
    for broken in ((-2, 0, 1), (64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)):
        with pytest.raises(ValueError, match="no tree"):
            TilePath(*broken)


@pytest.mark.parametrize("size", [0, 31, 63, 65, 8192])
def test_a_tile_of_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(FormatError) as caught:
        parse_tile(bytes(size), TilePath(0, 0, 2))
    assert caught.value.reason is Reason.TLOG_TILE
    assert "tile/0/000.p/2" in str(caught.value)


def test_bundles() -> None:
    raw = encode_bundle([b"", b"ab"])
    assert raw == b"\0\0\0\2ab"
    assert parse_bundle(raw, TilePath(ENTRIES, 0, 2)) == (b"", b"ab")
    for broken, width in ((raw, 1), (raw, 3), (raw[:-1], 2), (raw + b"x", 2)):
        with pytest.raises(FormatError) as caught:
            parse_bundle(broken, TilePath(ENTRIES, 0, width))
        assert caught.value.reason is Reason.TLOG_TILE


PROOF = TlogProof(3, (b"a" * 32, b"b" * 32), CHECKPOINT, b"extra")


def test_proofs_read_back_with_and_without_extra() -> None:
    for proof in (PROOF, TlogProof(0, (), CHECKPOINT)):
        assert parse_tlog_proof(proof.encode()) == proof
    assert PROOF.encode().startswith(b"c2sp.org/tlog-proof@v1\nextra ZXh0cmE=\nindex 3\nYWFh")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"@v1", b"@v2"),
        (b"index 3", b"index 03"),
        (b"index 3\n", b""),
        (b"index 3", b"Index 3"),
        (b"extra ", b"extra  "),
        (b"extra ZXh0cmE=\n", b"extra ZXh0cmE=\nextra ZXh0cmE=\n"),
        (b"\nYWFh", b"\nYWFhYWFh"),
        (b"\n\nlog", b"\nlog"),
        (b"\nindex 3\n", b"\nindex 3\n" + b"YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=\n" * 62),
        (b"ZXh0cmE=", b"AAAA" * 1366),
        (b"index", "índex".encode()),
    ],
)
def test_what_is_no_proof_is_refused(old: bytes, new: bytes) -> None:
    raw = PROOF.encode()
    assert old in raw
    with pytest.raises(FormatError):
        parse_tlog_proof(raw.replace(old, new, 1))
    with pytest.raises(FormatError):
        parse_tlog_proof(raw + bytes(1 << 21))


def test_requests_to_a_witness() -> None:
    request = AddCheckpoint(3, (b"a" * 32,), CHECKPOINT)
    raw = request.encode()
    assert parse_add_checkpoint(raw) == request
    hash_line = b"YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=\n"
    assert hash_line in raw
    for broken in (
        raw.replace(b"old 3", b"old 03"),
        raw.replace(b"old 3", b"3"),
        raw.replace(hash_line, hash_line * 64),
        raw.replace(hash_line, b"x\n"),
        raw.replace(b"\n\n", b"\n"),
        b"\xff" + raw,
        raw + bytes(1 << 21),
        b"",
    ):
        with pytest.raises(FormatError):
            parse_add_checkpoint(broken)
    assert parse_size_body(b"17\n") == 17
    for broken in (b"17", b"", b"x\n", b"017\n", b"1" * 40 + b"\n"):
        with pytest.raises(FormatError):
            parse_size_body(broken)


W1, W2, W3 = (each.key.encode() for each in WITNESSES)
GOOD = f"""# who is believed
log {LOG.key.encode()} https://log.example/
witness a {W1} https://w.example/
\twitness b   {W2}
witness c {W3}
group some 2 a b
group most all some c
quorum most
"""


def test_a_policy_with_nested_groups() -> None:
    found = parse_log_policy(GOOD.encode())
    assert found.logs[0].url == "https://log.example/"
    assert [each.name for each in found.witnesses] == ["a", "b", "c"]
    for names in ("ab", "abc", "ac", "bc", "c", ""):
        assert found.quorum.reached(frozenset(names)) is (names == "abc")
    one = parse_log_policy(GOOD.replace("quorum most", "quorum a").encode())
    assert one.quorum.reached(frozenset("a"))
    none = parse_log_policy(GOOD.replace("quorum most", "quorum none").encode())
    assert none.quorum.reached(frozenset())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("quorum most\n", ""),
        ("quorum most", "quorum most\nquorum most"),
        ("quorum most", "quorum nobody"),
        ("quorum most", "quorum most please"),
        ("group some 2", "group some 3"),
        ("group some 2", "group some 0"),
        ("group some 2", "group some two"),
        ("group some 2 a b", "group some 2 a a"),
        ("group some 2 a b", "group some 2 a none"),
        ("group most all some c", "group most all some a"),
        ("group most all some c", "group most all"),
        ("group some", "group none"),
        ("witness c", "witness a"),
        (W3, W1),
        (W3, LOG.key.encode()),
        (f"log {LOG.key.encode()}", f"log {W1}"),
        (f"log {LOG.key.encode()} https://log.example/\n", ""),
        ("# who", "who"),
        ("# who", "# wh\x01o"),
        ("# who is believed\n", "quorum none\n" * 300),
    ],
)
def test_a_policy_that_is_not_plain_is_refused(old: str, new: str) -> None:
    assert old in GOOD
    with pytest.raises(FormatError) as caught:
        parse_log_policy(GOOD.replace(old, new).encode())
    assert caught.value.reason is Reason.POLICY_FORMAT


def test_a_witness_under_the_key_of_the_log_is_refused() -> None:
    # Other name, other type, the same key.
    same = VerifierKey("witness.example/same", SignatureType.COSIGNATURE, LOG.key.key)
    with pytest.raises(FormatError, match="share a key"):
        parse_log_policy(GOOD.replace(W3, same.encode()).encode())


def test_times_are_signed() -> None:
    for witness in WITNESSES:
        line = witness.cosign(HEAD, seconds=int(NOW.timestamp()))
        assert verify_note_signature(witness.key, line, CHECKPOINT) == int(NOW.timestamp())
