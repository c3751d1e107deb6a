"""AMD's roots, and simulated ones in a roots file. docs/protocols/snp.md#2, evidence.md §3."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from confide.errors import FormatError, Reason
from confide.simulator.machine import simulated_roots
from confide.simulator.snp_pki import simulated_amd_roots
from confide.trust.amd import AMD_INTERMEDIATES, AMD_ROOTS, NO_AMD_ROOTS, AmdRoots
from confide.trust.roots import (
    VENDOR_ROOTS,
    Roots,
    encode_roots_file,
    make_simulated_roots,
    parse_roots_file,
)
from confide.wire.json import jcs
from confide.wire.snp import Product

OLD = simulated_roots(b"roots", datetime(2026, 11, 22, tzinfo=UTC))
AMD = simulated_amd_roots(b"roots")
NEW = make_simulated_roots(OLD.tdx, OLD.nvidia, AMD)


def test_the_pinned_roots_are_the_published_ones() -> None:
    assert {anchor.product: anchor.sha256 for anchor in AMD_ROOTS.anchors} == {
        Product.MILAN: "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
        Product.GENOA: "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
        Product.TURIN: "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
    }
    assert [hashlib.sha256(der).hexdigest()[:8] for der in AMD_INTERMEDIATES.values()] == [
        "67d303bd",
        "5464738c",
        "5b77ef5f",
        "c5e081f5",
    ]
    assert not AMD_ROOTS.simulated
    assert VENDOR_ROOTS.amd is AMD_ROOTS


def test_one_product_has_one_root() -> None:
    with pytest.raises(ValueError, match="one anchor"):
        AmdRoots(AMD_ROOTS.anchors + AMD_ROOTS.anchors[:1], simulated=False)


def test_only_the_exact_bytes_are_a_root() -> None:
    (first, *_) = AMD_ROOTS.anchors
    assert AMD_ROOTS.find(first.der) is first
    assert AMD_ROOTS.find(first.der + b"\0") is None
    assert NO_AMD_ROOTS.find(first.der) is None


def test_a_file_without_amd_is_the_file_it_was() -> None:
    raw = encode_roots_file(OLD)
    assert sorted(json.loads(raw)) == ["nvidia_device", "nvidia_rim", "tdx", "type"]
    assert parse_roots_file(raw).amd == NO_AMD_ROOTS
    assert make_simulated_roots(OLD.tdx, OLD.nvidia) == OLD


def test_a_file_with_amd_reads_back_and_has_another_name() -> None:
    raw = encode_roots_file(NEW)
    assert parse_roots_file(raw) == NEW
    assert NEW.amd == AMD
    assert NEW.amd.simulated
    assert NEW.name != OLD.name
    assert (NEW.tdx, NEW.nvidia, NEW.sha256) == (OLD.tdx, OLD.nvidia, OLD.sha256)


def test_genuine_roots_do_not_stand_in_a_file() -> None:
    with pytest.raises(ValueError, match="simulated"):
        encode_roots_file(Roots("", OLD.tdx, OLD.nvidia, AMD_ROOTS))


@pytest.mark.parametrize(
    "amd", [None, {}, [], "AA==", {"Rome": "AA=="}, {"Milan": "AA"}, {"Milan": 1}]
)
def test_what_is_no_root_is_refused(amd: Any) -> None:
    document = {**json.loads(encode_roots_file(OLD)), "amd": amd}
    with pytest.raises(FormatError) as refused:
        parse_roots_file(jcs(document))
    assert refused.value.reason is Reason.ROOT_MISMATCH
