"""Appraisal and receipts in this process, over SIMULATED evidence that is byte-exact.

The peer for TDX is dcap-qvl, where it is installed: the fastest other verifier known. It checks
less (no policy, no event log); the comparison is kind to it.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from bench.rows import Row, absent, medians, rate, rates, row

from confide.appraisal.nvidia import GpuSetResult, VerifiedSignatures, appraise_gpus
from confide.appraisal.tdx import appraise_quote, appraise_tdx, verify_collateral, verify_quote
from confide.crypto.ecdsa import Curve, derive_signing_key, verify
from confide.crypto.ed25519 import Ed25519Signer
from confide.receipts.inline import encode_inline
from confide.receipts.issue import ReceiptSigner, issue_inference_receipt
from confide.simulator.machine import make_gpus
from confide.simulator.nvidia import simulated_ppcie
from confide.simulator.tdx import SimulatedLaunch, SimulatedTdxPlatform
from confide.wire.collateral import parse_collateral
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from confide.simulator.nvidia import SimulatedGpuSet
    from confide.wire.json import JsonValue

_NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
_SEED = b"bench"
_REPORT_DATA = hashlib.sha512(b"bench").digest()
_LAUNCH = SimulatedLaunch(mr_td=b"\1" * 48, rtmr=(b"\2" * 48, b"\3" * 48, b"\4" * 48, b"\5" * 48))
_HEX = hashlib.sha256(b"bench").hexdigest()


def verification_rows() -> Iterator[Row]:
    """Yield rows for quotes, GPUs and receipts: calls a CPU second, best of five, in turns."""
    yield from _tdx()
    yield from _gpu()
    yield from _receipts()


def _dcap_qvl(quote: bytes, collateral: bytes, root: bytes) -> Callable[[], object] | None:
    try:
        # Not a dependency: measured where it is there.
        dcap_qvl = import_module("dcap_qvl")
    except ImportError:
        return None

    def action() -> object:
        parsed = dcap_qvl.QuoteCollateralV3.from_json(collateral.decode())
        return dcap_qvl.verify_with_root_ca(quote, parsed, root, int(_NOW.timestamp()))

    return action


@dataclass(frozen=True, slots=True)
class TdxActions:
    """One honest quote, appraised in two ways, and the same bytes for the peer."""

    cold: Callable[[], object]
    warm: Callable[[], object]
    theirs: Callable[[], object] | None


def make_tdx() -> TdxActions:
    """Return the actions of the TDX rows: everything anew, and with the collateral known."""
    platform = SimulatedTdxPlatform(_SEED, _NOW)
    quote, collateral = platform.quote(_LAUNCH, report_data=_REPORT_DATA), platform.collateral()
    roots, policy = (platform.anchor(),), platform.policy(_LAUNCH)
    known = verify_collateral(parse_collateral(collateral), roots=roots, now=_NOW)

    def cold() -> object:
        return appraise_tdx(
            quote, collateral, roots=roots, policy=policy, report_data=_REPORT_DATA, now=_NOW
        )

    def warm() -> object:
        verified = verify_quote(parse_quote(quote), known, now=_NOW)
        return appraise_quote(verified, policy, expected_report_data=_REPORT_DATA, now=_NOW)

    return TdxActions(cold, warm, _dcap_qvl(quote, collateral, platform.anchor().der))


def _tdx() -> Iterator[Row]:
    actions = make_tdx()
    arms = (actions.cold, actions.warm, *((actions.theirs,) if actions.theirs else ()))
    found = rates(*arms)
    peer = found[2] if actions.theirs is not None else None
    for name, value, floor in (("cold", found[0], 600), ("collateral known", found[1], 2000)):
        yield row(
            f"appraise a TDX quote, {name}, beside dcap-qvl",
            value,
            "quotes/s",
            peer=peer,
            budget=f">= {floor}",
            met=value >= floor,
        )
    name = "appraise TDX quotes in two processes, beside one"
    if len(os.sched_getaffinity(0)) < 2:
        yield absent(name, "quotes/s", "one processor")
        return
    one, two = medians(lambda: _together(1), lambda: _together(2), rounds=3)
    yield row(name, two, "quotes/s", peer=one, budget="ratio >= 1.7", met=two >= 1.7 * one)


def _together(processes: int) -> float:
    """Return quotes a second of wall time, over `processes` that work at once."""
    words = [sys.executable, "-m", "bench.quotes", "1.0"]
    workers = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for worker in workers:
        if worker.stdout is None or worker.stdout.readline() != "ready\n":
            raise RuntimeError("a process of the benchmark did not start")
    # Communicating starts one and waits for it: all are started first.
    for worker in workers:
        if worker.stdin is not None:
            worker.stdin.write("\n")
            worker.stdin.flush()
    return sum(float(worker.communicate()[0]) for worker in workers)


def _gpu() -> Iterator[Row]:
    yield from _devices("one GPU", make_gpus(_SEED, _NOW, ()), budget=6)
    yield from _devices("8 GPUs and 4 NVSwitches", simulated_ppcie(_SEED, now=_NOW), budget=60)


def _p384() -> Callable[[], object]:
    """Return one P-384 verification: what there is no way around, dozens of times."""
    key = derive_signing_key(Curve.P384, _SEED, "bench")
    message = bytes(4096)
    signature = key.sign(message)
    return partial(verify, key.public, signature, message)


def _devices(what: str, gpus: SimulatedGpuSet, *, budget: float) -> Iterator[Row]:
    """Yield the cost of one set; the peer is one bare P-384 verification in the same run."""
    nonce = bytes(range(32))
    devices, endorsements = gpus.collect(nonce), gpus.endorsements(_NOW)
    roots, policy = gpus.roots(), gpus.policy()

    def appraise(before: GpuSetResult | None, *, signatures: bool) -> GpuSetResult:
        return appraise_gpus(
            devices,
            endorsements,
            roots=roots,
            policy=policy,
            expected_nonce=nonce,
            now=_NOW,
            known_rims=() if before is None else before.verified_rims,
            known_signatures=before.verified_signatures
            if before is not None and signatures
            else VerifiedSignatures(),
        )

    first = appraise(None, signatures=False)
    for name, before, signatures, limit in (
        ("cold, RIMs included", None, False, None),
        ("RIMs known", first, False, budget),
        ("RIMs and signatures known", first, True, budget),
    ):
        each, bare = rates(partial(appraise, before, signatures=signatures), _p384())
        spent = 1000 / each
        yield row(
            f"appraise {what}, {name}, beside one P-384 verification",
            spent,
            "ms",
            peer=1000 / bare,
            budget="" if limit is None else f"<= {limit:g}",
            met=None if limit is None else spent <= limit,
        )


def _receipts() -> Iterator[Row]:
    record: dict[str, JsonValue] = {
        "endpoint": "/v1/chat/completions",
        "model": "bench",
        "request": _HEX,
        "forwarded": None,
        "upstream": _HEX,
        "response": _HEX,
        "status": 200,
        "streamed": False,
        "usage": {"input_tokens": 200, "output_tokens": 180},
        "transformations": [],
        "finish": "complete",
    }
    signer = ReceiptSigner(3, Ed25519Signer(bytes(range(32))))
    digest = bytes.fromhex(_HEX)

    def issue() -> str:
        return encode_inline(
            issue_inference_receipt(
                signer,
                receipt_id="rcpt-" + _HEX[:32],
                keyset=digest,
                model="bench",
                weights=digest,
                served=_NOW,
                sequence=7,
                sealed_request=digest,
                response=digest,
                record=record,
            )
        )

    spent = 1e6 / rate(issue)
    bare = 1e6 / rate(lambda: signer.signer.sign(bytes(1400)))
    yield row(
        "issue the receipt of one answer and encode it, beside its signature alone",
        spent,
        "us",
        peer=bare,
        budget="<= 1000",
        met=spent <= 1000,
    )
