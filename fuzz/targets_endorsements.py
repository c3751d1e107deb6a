"""Targets: saved bundles, and answers of vendors' services as their readers cut them."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from urllib.parse import quote

from confide.errors import Reason
from confide.simulator.tdx import SimulatedTdxPlatform
from confide.wire.bundle import decode_bundle, encode_bundle
from confide.wire.certificate_key import subject_public_key_info
from confide.wire.collateral import parse_collateral
from confide.wire.endorsements import Endorsements, SnpEndorsement
from confide.wire.evidence import NvidiaEndorsements, OcspAnswer, RimDocument
from confide.wire.pcs import issuer_chain, revocation_list, signed_document
from confide.wire.service import Capture
from fuzz.driver import Target

_NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@cache
def _collateral() -> bytes:
    return SimulatedTdxPlatform(b"fuzz", _NOW).collateral()


def _bundle(raw: bytes) -> None:
    # What is read back is the same: equal values, equal bytes.
    capture, endorsements = decode_bundle(raw)
    again = encode_bundle(capture, endorsements)
    assert decode_bundle(again) == (capture, endorsements)


def _bundles() -> tuple[bytes, ...]:
    held = Endorsements(
        tdx=(_collateral(),),
        snp=(SnpEndorsement(leaf_der=b"leaf", chain_pem=b"chain"),),
        nvidia=NvidiaEndorsements((RimDocument("a", b"<a/>"),), (OcspAnswer("00" * 32, b"x"),)),
    )
    capture = Capture(documents={"report": b"{}"}, nonce=bytes(32), at=_NOW, url="https://x/")
    return encode_bundle(capture, held), encode_bundle(capture, Endorsements())


def _signed(raw: bytes) -> None:
    document, signature = signed_document(raw, "tcbInfo")
    # Cut, never made: the bytes are those that came.
    assert document in raw
    assert len(signature) == 64


def _signed_seeds() -> tuple[bytes, ...]:
    found = parse_collateral(_collateral())
    signature = found.tcb_info_signature.hex().encode()
    return (
        b'{"tcbInfo":%b,"signature":"%b"}' % (found.tcb_info, signature),
        b'{ "signature" : "%b", "tcbInfo" : {"a":"}\\""} }' % signature,
    )


def _lists(raw: bytes) -> None:
    revocation_list(raw)
    issuer_chain(raw.decode("latin-1"))


def _list_seeds() -> tuple[bytes, ...]:
    found = parse_collateral(_collateral())
    return (
        # First what both readers take: a chain is a list as far as the second is concerned.
        quote(found.tcb_info_chain.decode()).encode(),
        found.root_crl,
        found.pck_crl.hex().encode(),
    )


def _key(raw: bytes) -> None:
    subject_public_key_info(raw, what="input", reason=Reason.SERVICE_FORMAT)


def _key_seeds() -> tuple[bytes, ...]:
    return (SimulatedTdxPlatform(b"fuzz", _NOW).anchor().der,)


ENDORSEMENT_TARGETS: tuple[Target, ...] = (
    Target("bundle", _bundle, _bundles, json_values=True),
    Target("pcs-document", _signed, _signed_seeds, json_values=True),
    Target("pcs-lists", _lists, _list_seeds),
    Target("certificate-key", _key, _key_seeds),
)
