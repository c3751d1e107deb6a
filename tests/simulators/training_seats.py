"""Nodes that train one job together, in memory: what each of them offers to seat 0."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from nodes import CountingEntropy, SimulatedNode

from confide.appraisal.eventlog import run_commitment
from confide.training.boots import RUN_EVENT
from confide.training.rank_certificates import key_digest, key_point, seat_key
from confide.training.ranks import SeatOffer, seat_claim, seat_nonce
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from confide.crypto.ecdsa import SigningKey
    from confide.training.ranks import Seating
    from confide.training.shares import Engine


def tls_key(label: str) -> SigningKey:
    """The TLS key of the seat that is called `label`."""
    return seat_key(hashlib.sha256(label.encode()).digest())


def digest_of(label: str) -> bytes:
    """What a claim holds of that key."""
    return key_digest(key_point(tls_key(label)))


async def seat_node(label: str, seating: Seating, *, gpu: str, weights: bytes) -> SimulatedNode:
    """A booted training node that was told of the job."""
    node = SimulatedNode("model", entropy=CountingEntropy(label.encode()), gpu=gpu, weights=weights)
    await node.boot()
    payload = run_commitment(RUN_EVENT, run=seating.job, digest=seating.plan)
    await node.guest.extend(RuntimeEvent(RUN_EVENT, payload))
    return node


async def offer_of(
    node: SimulatedNode,
    seating: Seating,
    expectation: bytes,
    *,
    seat: int,
    first: int,
    ranks: int,
    key: bytes | None,
    engine: Engine | None = None,
) -> SeatOffer:
    """What `node` offers for a seat; `expectation` is the digest of the job's."""
    engine = seating.engine if engine is None else engine
    claim = seat_claim(seating, seat=seat, first=first, ranks=ranks, key=key, engine=engine)
    nonce = seat_nonce(seating.nonce, boot=seating.boot, seat=seat)
    return SeatOffer(ranks, key, engine, await node.attest("claim", nonce, expectation, claim))
