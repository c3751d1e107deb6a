"""Seats of a job on several nodes: admitted together or not at all, and held to in the record."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from nodes import NOW, SOFTWARE, WEIGHTS
from runs import expectation_and_roots
from training_seats import digest_of, offer_of, seat_node, tls_key
from trainings import Happening, Job, refusals, resealed, train, verify

from confide.errors import FormatError, Reason, TrainingRejected
from confide.training import ranks as procedure
from confide.training.rank_certificates import (
    issue_seat_certificates,
    key_digest,
    key_point,
)
from confide.training.rank_statement import encode_ranks, parse_ranks
from confide.training.ranks import AdmittedSeats, Seating, SeatOffer, admit_seats
from confide.training.record import TrainingOutput, issue_training_record
from confide.training.record_file import parse_record_file
from confide.wire.json import jcs, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from nodes import SimulatedNode

    from confide.training.ranks import Seat
    from confide.training.record_file import RecordFile

SEEDED = hashlib.sha256(b"authority").digest()


def sha(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True)
class Table:
    """Seat 0 and seat 1 of a job of three ranks, one and two, and the seating they are held to."""

    nodes: tuple[SimulatedNode, ...]
    seating: Seating
    offers: tuple[SeatOffer, ...]

    def admit(self, **changed: Any) -> AdmittedSeats:
        offers = changed.pop("offers", self.offers)
        return admit_seats(
            replace(self.seating, **changed),
            offers,
            expectation=expectation_and_roots()[0],
            roots=expectation_and_roots()[1],
            now=NOW,
        )

    def refusals(self, **changed: Any) -> dict[str, Reason]:
        """The seat steps that refuse."""
        with pytest.raises(TrainingRejected) as refused:
            self.admit(**changed)
        return {
            finding.step.removeprefix("seat/"): finding.reason
            for finding in refused.value.failures
            if finding.step.startswith("seat/") and finding.reason is not None
        }

    def offer(self, seat: int, **other: Any) -> SeatOffer:
        """What the node of `seat` offers where it is told something else."""
        node = other.pop("node", self.nodes[seat])
        seating = other.pop("seating", self.seating)
        told: dict[str, Any] = {
            "seat": seat, "first": (0, 1)[seat], "ranks": (1, 2)[seat], "key": self.offers[seat].key
        }  # fmt: skip
        digest = expectation_and_roots()[0].digest
        return asyncio.run(offer_of(node, seating, digest, **told | other))


@cache
def table() -> Table:
    async def set_it() -> Table:
        seating = Seating(
            job=sha("job"), nonce=sha("nonce"), plan=sha("plan"), base=WEIGHTS, world=3, boot=0,
            keyset=bytes(32), software=SOFTWARE, engine="ring",
        )  # fmt: skip
        nodes = [
            await seat_node(f"seat {n}", seating, gpu=gpu, weights=WEIGHTS)
            for n, gpu in enumerate(("model-node", "other"))
        ]
        seating = replace(seating, keyset=nodes[0].keys.keyset.digest)
        digest = expectation_and_roots()[0].digest
        offers = [
            await offer_of(
                node, seating, digest, seat=n, first=n, ranks=n + 1, key=digest_of(f"seat {n}")
            )
            for n, node in enumerate(nodes)
        ]
        return Table(tuple(nodes), seating, tuple(offers))

    return asyncio.run(set_it())


def another_node(**facts: Any) -> SimulatedNode:
    """A node that is not at the table."""
    usual = {"gpu": "third", "weights": WEIGHTS}
    return asyncio.run(seat_node("another", table().seating, **usual | facts))


def test_seats_that_are_proven_are_admitted_together() -> None:
    admitted = table().admit()
    first, second = admitted.seats
    assert (first.first, first.ranks, second.first, second.ranks) == (0, 1, 1, 2)
    assert [node.keyset for node in admitted.nodes] == [node.keys.keyset for node in table().nodes]
    assert first.machine != second.machine
    assert set(first.gpus).isdisjoint(second.gpus)
    assert [admitted.seat_of(rank) for rank in range(3)] == [first, second, second]
    assert {finding.step for finding in admitted.findings} >= {
        f"seat/{number}" for number in range(1, 6)
    }


def test_only_the_procedure_makes_admitted_seats() -> None:
    with pytest.raises(TypeError, match="only admit_seats"):
        AdmittedSeats((), (), (), seal=None)


def _nobody_measured() -> tuple[SeatOffer, ...]:
    """A node that was told of another plan, and quotes the right claim all the same."""
    elsewhere = replace(table().seating, plan=sha("another plan"))
    node = asyncio.run(seat_node("elsewhere", elsewhere, gpu="third", weights=WEIGHTS))
    return table().offers[0], table().offer(1, node=node)


OFFERED: dict[str, tuple[Callable[[], tuple[SeatOffer, ...]], dict[str, Reason]]] = {
    "other weights": (
        lambda: (table().offers[0], table().offer(1, node=another_node(weights=sha("tampered")))),
        {"1": Reason.MODEL_MISMATCH},
    ),
    "another plan": (
        lambda: (
            table().offers[0],
            table().offer(1, seating=replace(table().seating, plan=sha("another plan"))),
        ),
        {"1": Reason.CLAIM_MISMATCH},
    ),
    "another job": (
        lambda: (
            table().offers[0],
            table().offer(1, seating=replace(table().seating, job=sha("another job"))),
        ),
        {"1": Reason.CLAIM_MISMATCH},
    ),
    "an earlier boot": (
        lambda: (
            table().offers[0], table().offer(1, seating=replace(table().seating, boot=1))
        ),
        {"1": Reason.NONCE_MISMATCH},
    ),
    "another nonce": (
        lambda: (
            table().offers[0],
            table().offer(1, seating=replace(table().seating, nonce=sha("another nonce"))),
        ),
        {"1": Reason.NONCE_MISMATCH},
    ),
    "replayed evidence of another seat": (
        lambda: (table().offers[0], replace(table().offers[0], ranks=2)),
        {"1": Reason.NONCE_MISMATCH},
    ),
    "another TLS key than was proven": (
        lambda: (table().offers[0], replace(table().offers[1], key=digest_of("stranger"))),
        {"1": Reason.CLAIM_MISMATCH},
    ),
    "more ranks than were proven": (
        lambda: (table().offers[0], replace(table().offers[1], ranks=3)),
        {"1": Reason.CLAIM_MISMATCH},
    ),
    "a plan that RTMR3 does not hold": (_nobody_measured, {"2": Reason.TRAINING_PLAN}),
    "too few ranks": (
        lambda: (table().offers[0], table().offer(1, ranks=1)),
        {"4": Reason.TRAINING_MACHINE},
    ),
    "no rank": (
        lambda: (table().offer(0, ranks=0), table().offer(1, first=0, ranks=3)),
        {"4": Reason.TRAINING_MACHINE},
    ),
    "a seat without a key": (
        lambda: (table().offers[0], table().offer(1, key=None)),
        {"4": Reason.TRAINING_MACHINE},
    ),
    "one node in two seats": (
        lambda: (table().offers[0], table().offer(1, node=table().nodes[0])),
        {"5": Reason.TRAINING_MACHINE},
    ),
    "one GPU in two seats": (
        lambda: (table().offers[0], table().offer(1, node=another_node(gpu="model-node"))),
        {"5": Reason.TRAINING_MACHINE},
    ),
    "links by another engine": (
        lambda: (table().offers[0], table().offer(1, engine="ray")),
        {"4": Reason.TRAINING_MACHINE},
    ),
    "another engine than was proven": (
        lambda: (table().offers[0], replace(table().offers[1], engine="ray")),
        {"1": Reason.CLAIM_MISMATCH},
    ),
    "one TLS key for two seats": (
        lambda: (table().offers[0], table().offer(1, key=digest_of("seat 0"))),
        {"5": Reason.TRAINING_MACHINE},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OFFERED)
def test_a_seat_is_refused_for(what: str) -> None:
    offers, found = OFFERED[what]
    assert table().refusals(offers=offers()) == found


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"base": bytes(32)}, {"3": Reason.MODEL_MISMATCH}),
        ({"software": bytes(32)}, {"3": Reason.NODE_SOFTWARE_MISMATCH}),
        ({"keyset": bytes(32)}, {"4": Reason.TRAINING_MACHINE}),
        ({"engine": "ray"}, {"4": Reason.TRAINING_MACHINE}),
    ],
)
def test_seats_are_refused_where_seat_0_knows_better(
    changed: dict[str, Any], found: dict[str, Reason]
) -> None:
    assert table().refusals(**changed) == found


@pytest.mark.parametrize("count", [0, 65])
def test_there_are_seats_and_not_too_many(count: int) -> None:
    assert table().refusals(offers=table().offers[:1] * count) == {"4": Reason.TRAINING_MACHINE}


def test_every_step_carries_weight() -> None:
    """Without a step, something that it refuses passes: each of them is needed."""
    bad = {
        "2": table().refusals(offers=_nobody_measured()),
        "3": table().refusals(base=bytes(32)),
        "4": table().refusals(keyset=bytes(32)),
        "5": table().refusals(offers=OFFERED["one GPU in two seats"][0]()),
    }
    assert {step: list(found) for step, found in bad.items()} == {step: [step] for step in bad}
    assert {step.id for step in procedure.SEAT_STEPS} == {f"seat/{n}" for n in range(1, 6)}


def test_one_seat_has_nothing_that_ray_could_carry() -> None:
    alone = replace(table().seating, world=1, engine="ray")
    offer = table().offer(0, seating=alone, ranks=1, key=None)
    assert table().refusals(offers=(offer,), world=1, engine="ray") == {
        "4": Reason.TRAINING_MACHINE
    }


# Certificates.


def test_keys_that_were_proven_get_certificates_and_no_others_do() -> None:
    admitted = table().admit()
    points = [key_point(tls_key(f"seat {number}")) for number in (0, 1)]
    issued = issue_seat_certificates(admitted, points, seed=SEEDED, now=NOW)
    assert len(issued.seats) == 2
    assert len({issued.authority, *issued.seats}) == 3
    for others in ([points[1], points[0]], points[:1], [points[0], key_point(tls_key("x"))]):
        with pytest.raises(TrainingRejected, match="not the one that its seat proved"):
            issue_seat_certificates(admitted, others, seed=SEEDED, now=NOW)
    with pytest.raises(FormatError):
        key_digest(bytes(64))


def test_with_an_address_a_certificate_names_it() -> None:
    admitted = table().admit()
    points = [key_point(tls_key(f"seat {number}")) for number in (0, 1)]
    addresses = [IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")]
    issued = issue_seat_certificates(admitted, points, seed=SEEDED, now=NOW, addresses=addresses)
    for address, pem in zip(addresses, issued.seats, strict=True):
        shown = x509.load_pem_x509_certificate(pem.encode())
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert list(names) == [x509.IPAddress(address)]
    with pytest.raises(ValueError, match="zip"):
        issue_seat_certificates(admitted, points, seed=SEEDED, now=NOW, addresses=addresses[:1])


# The record.

RANKED = Job("ranked", seats=(1, 2), turns=(Happening("moved", 4, "other"),))
ONE_NODE = Job("one node", seats=(4,))
BY_RAY = replace(RANKED, name="by ray", engine="ray")


def with_seats(trained: Any, edit: Callable[[list[list[Seat]]], None], **parts: Any) -> RecordFile:
    """The record of a node that signs another statement about its seats."""
    merged, boots = parse_ranks(trained.file.statements["ranks"].payload)
    edited = [list(boot) for boot in boots]
    edit(edited)
    file = resealed(trained, statements={"ranks": encode_ranks(merged, edited)})
    return replace(file, **parts)


def test_a_record_names_the_seats_of_every_boot() -> None:
    trained = train(RANKED)
    found = verify(trained.file)
    assert [[(seat.first, seat.ranks) for seat in boot] for boot in found.seats] == [
        [(0, 1), (1, 2)]
    ] * 2
    assert [boot[0].machine for boot in found.seats] == list(found.machines)
    assert found.record.plan.world == 3
    raw = trained.file.encode()
    assert parse_record_file(raw).encode() == raw
    assert verify(parse_record_file(raw)).seats == found.seats
    (said,) = [each.detail for each in found.findings if each.step == "record/6"]
    assert "3 ranks in 2 seat(s)" in str(said)


def test_a_record_says_what_linked_its_seats() -> None:
    for job in (RANKED, BY_RAY):
        found = verify(train(job).file)
        assert {seat.engine for boot in found.seats for seat in boot} == {job.engine}
        (said,) = [each.detail for each in found.findings if each.step == "record/6"]
        assert str(said).endswith(f"linked by {job.engine}")


def _of_boot(boot: int) -> Callable[[list[list[Seat]]], None]:
    def edit(boots: list[list[Seat]]) -> None:
        boots[boot] = [replace(seat, engine="ring") for seat in boots[boot]]

    return edit


def _everywhere(boots: list[list[Seat]]) -> None:
    for boot in (0, 1):
        _of_boot(boot)(boots)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_of_boot(0), Reason.CLAIM_MISMATCH),
        (_of_boot(1), Reason.CLAIM_MISMATCH),
        (_everywhere, Reason.CLAIM_MISMATCH),
    ],
)
def test_the_engine_of_a_record_cannot_be_edited(
    edit: Callable[[list[list[Seat]]], None], reason: Reason
) -> None:
    assert refusals(with_seats(train(BY_RAY), edit))["6"] is reason


def test_all_ranks_in_one_node_are_one_seat_without_a_key() -> None:
    found = verify(train(ONE_NODE).file)
    assert [(seat.first, seat.ranks, seat.key) for seat in found.seats[0]] == [(0, 4, None)]


def test_a_record_of_one_rank_is_as_it_was() -> None:
    file = train().file
    assert "ranks" not in file.statements
    assert b'"seats"' not in file.encode()
    assert verify(file).seats == ()


@pytest.mark.parametrize(
    "changed",
    [
        {"machine": bytes(32)},
        {"keyset": bytes(32)},
        {"evidence": bytes(32)},
        {"gpus": ("another",)},
    ],
)
def test_a_seat_that_was_not_proven_is_refused(changed: dict[str, Any]) -> None:
    def edit(boots: list[list[Seat]]) -> None:
        boots[1][1] = replace(boots[1][1], **changed)

    assert refusals(with_seats(train(RANKED), edit))["6"] is Reason.TRAINING_MACHINE


@pytest.mark.parametrize("changed", [{"first": 2}, {"ranks": 1}, {"key": bytes(32)}])
def test_a_seat_that_was_proven_otherwise_is_refused(changed: dict[str, Any]) -> None:
    def edit(boots: list[list[Seat]]) -> None:
        boots[0][1] = replace(boots[0][1], **changed)

    reason = Reason.TRAINING_MACHINE if "first" in changed else Reason.CLAIM_MISMATCH
    assert refusals(with_seats(train(RANKED), edit))["6"] is reason


def test_a_seat_cannot_be_left_out() -> None:
    def edit(boots: list[list[Seat]]) -> None:
        del boots[0][1]

    file = train(RANKED).file
    fewer = ((file.seats[0][0],), file.seats[1])
    assert refusals(with_seats(train(RANKED), edit))["6"] is Reason.TRAINING_MACHINE
    # Also not together with its evidence.
    found = refusals(with_seats(train(RANKED), edit, seats=fewer))
    assert found["6"] is Reason.TRAINING_MACHINE
    assert refusals(replace(file, seats=()))["6"] is Reason.TRAINING_MACHINE


def test_seats_of_another_boot_or_job_are_refused() -> None:
    file = train(RANKED).file
    swapped = replace(file, seats=file.seats[::-1])
    assert refusals(swapped)["6"] is Reason.NONCE_MISMATCH
    other = train(replace(RANKED, name="another job with ranks")).file
    assert refusals(replace(file, seats=other.seats))["6"] is Reason.NONCE_MISMATCH


def test_the_statement_is_there_exactly_where_there_are_ranks() -> None:
    assert refusals(resealed(train(RANKED), statements={"ranks": None}))["2"] is (
        Reason.RECEIPT_MISSING
    )
    one = train().file
    ranks = train(RANKED).file.statements["ranks"]
    added = replace(one, statements={**one.statements, "ranks": ranks})
    assert refusals(added)["2"] is Reason.RECEIPT_NOT_REFERENCED
    assert refusals(replace(one, seats=train(RANKED).file.seats))["6"] is Reason.TRAINING_MACHINE


def test_a_statement_about_other_weights_is_refused() -> None:
    _, boots = parse_ranks(train(RANKED).file.statements["ranks"].payload)
    other = resealed(train(RANKED), statements={"ranks": encode_ranks(bytes(32), boots)})
    assert refusals(other)["2"] is Reason.CLAIM_MISMATCH


def test_the_number_of_ranks_cannot_be_edited() -> None:
    def edit(document: dict[str, Any]) -> None:
        document["predicate"]["buildDefinition"]["internalParameters"]["world"] = 1

    assert refusals(resealed(train(RANKED), edit)) == {"1": Reason.TRAINING_PLAN}


def _statement(edit: Callable[[list[Any]], None]) -> bytes:
    raw = parse_json(
        train(RANKED).file.statements["ranks"].payload, what="x", reason=Reason.TRAINING_FORMAT
    )
    edit(raw["predicate"]["attributes"])  # type: ignore[arg-type,call-overload,index]
    return jcs(raw)


def _boot_2(items: list[Any]) -> None:
    for item in items[4:]:
        item["target"]["name"] = item["target"]["name"].replace("boot/1", "boot/2")


MALFORMED: dict[str, Callable[[list[Any]], None]] = {
    "one attribute of two": lambda items: items.pop(),
    "none": lambda items: items.clear(),
    "another order": lambda items: items.reverse(),
    "a seat missing": lambda items: items.__delitem__(slice(2)),
    "a boot missing": _boot_2,
    "no target": lambda items: items[0].pop("target"),
    "no rank": lambda items: items[0]["conditions"].update(ranks=0),
    "too many ranks": lambda items: items[0]["conditions"].update(ranks=1025),
    "no engine": lambda items: items[0]["conditions"].pop("engine"),
    "an engine that is none": lambda items: items[0]["conditions"].update(engine="mpi"),
    "a condition more": lambda items: items[0]["conditions"].update(more=1),
    "a GPU that is no text": lambda items: items[1]["conditions"].update(gpus=[1]),
    "two keysets": lambda items: items[1]["target"]["digest"].update(sha256="00" * 32),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_statement_that_is_none_is_refused(what: str) -> None:
    with pytest.raises(FormatError):
        parse_ranks(_statement(MALFORMED[what]))


@pytest.mark.parametrize("seats", [[], [[]], [1]])
def test_evidence_of_seats_that_is_none_is_refused(seats: Any) -> None:
    value: Any = parse_json(train(RANKED).file.encode(), what="x", reason=Reason.TRAINING_FORMAT)
    value["evidence"]["seats"] = seats
    with pytest.raises(FormatError, match="seats"):
        parse_record_file(jcs(value))


def test_a_node_does_not_sign_a_record_without_its_seats() -> None:
    trained = train(RANKED)
    output = TrainingOutput(
        manifests=RANKED.manifests, base_metrics=None, tuned_metrics=None, better=False
    )
    with pytest.raises(ValueError, match="has seats, and no other"):
        issue_training_record(trained.node.keys.signer, trained.record, output=output, boots=())
