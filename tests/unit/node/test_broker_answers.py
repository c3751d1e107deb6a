"""The key broker over HTTP: what is released, to whom, and what every refusal says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from broker_world import (
    KEYS,
    NAME,
    RELEASE,
    REPOSITORY,
    RESOURCE,
    RUN,
    VALUE,
    VERSION,
    Broker,
    Guest,
    Owners,
    World,
    expectation,
    owners_policy,
    ready_node,
    receipt_of,
    run,
)
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from nodes import SimulatedNode

from confide.appraisal.eventlog import run_commitment
from confide.broker.holdings import Held
from confide.broker.info import verify_broker_info
from confide.broker.session import SESSION_SECONDS
from confide.crypto.jwe import derive_unwrapping_key
from confide.errors import FormatError, Reason, ReleaseRefused, Unavailable
from confide.node.broker_audit import PENDING, RELEASED, SETTLED, parse_kept
from confide.simulator.machine import make_platform, parse_fault
from confide.simulator.trustee import SimulatedPod
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.ccel import encode_ccel
from confide.wire.jose import b64url_decode, b64url_encode
from confide.wire.jwe import parse_jwe
from confide.wire.release_receipt import parse_release_receipt
from confide.wire.rtmr_log import RuntimeEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import httpx2


def with_broker(work: Callable[[World, Broker], Awaitable[None]], **how: Any) -> World:
    """Run `work` against a broker that serves; nothing that it answers in clear holds the value."""
    config = how.pop("config", {})
    world = World(**how)

    async def serve() -> None:
        async with world.serving(**config) as broker:
            await work(world, broker)

    run(serve())
    for record in world.store.rows.values():
        assert VALUE not in record.sealed
    return world


def refusal(answer: httpx2.Response, status: int, reason: Reason | None) -> None:
    """The answer is a refusal as 4.4 has it, in our words."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"type", "detail"} | ({"reason"} if reason is not None else set())
    assert body.get("reason") == (None if reason is None else reason.value)
    assert len(body["detail"]) < 80
    assert ("retry-after" in answer.headers) == (status == 503)
    assert VALUE not in answer.content


def nothing_released(world: World) -> None:
    assert not world.sealed().entries(RELEASED)
    assert all(not parse_release_receipt(kept).released for kept in logged(world))


def logged(world: World) -> list[bytes]:
    """The payloads of the decisions that are in the log, in its order."""
    kept = [
        parse_kept(entry.value).envelope
        for kind in (PENDING, RELEASED, SETTLED)
        for entry in world.sealed().entries(kind)
    ]
    found = {envelope.digest: envelope.payload for envelope in kept}
    return [found[digest] for digest in world.log.digests]


def release_to_policy(owners: Owners, raw: bytes) -> bytes:
    digest = hashlib.sha256(raw).digest()
    owners.toml[digest] = raw
    owners.releases[RESOURCE, "policy", digest] = RELEASE
    return digest


# --- what is released -----------------------------------------------------------------------------


@pytest.mark.parametrize("curve", ["P-256", "P-521"])
def test_a_node_gets_the_secret_that_was_released_to_its_expectation(curve: str) -> None:
    async def work(world: World, broker: Broker) -> None:
        link = await broker.link(curve=curve)
        found = await link.secret(NAME)
        assert (found.name, found.version, found.value) == (NAME, VERSION, VALUE)
        decision = parse_release_receipt(found.receipt.payload)
        assert (decision.resource, decision.version) == (RESOURCE, VERSION)
        assert (decision.accepts, decision.against) == ("expectation", expectation().digest)
        assert (decision.broker, decision.release) == (KEYS.key, RELEASE)
        # In the log, and durable with its proof, before the node had it.
        assert world.log.digests == [found.receipt.digest]
        [kept] = [parse_kept(entry.value) for entry in world.sealed().entries(RELEASED)]
        assert kept.envelope == found.receipt
        assert kept.proof
        await link.close()

    with_broker(work)


def test_a_model_node_is_proven_with_its_devices_and_gets_nothing_of_the_agents() -> None:
    async def work(_world: World, broker: Broker) -> None:
        node = SimulatedNode("model")
        await node.boot()
        link = await broker.link(node, role="model", run=None)
        with pytest.raises(ReleaseRefused) as refused:
            await link.secret(NAME)
        assert refused.value.reason is Reason.EXPECTATION_MISMATCH

    with_broker(work)


def test_what_an_expectation_does_not_list_is_not_released_to_it() -> None:
    async def work(world: World, broker: Broker) -> None:
        unlisted = f"{REPOSITORY}/secret/unlisted"
        world.owners.values[unlisted] = Held(b"2" * 32, b"another value")
        world.owners.releases[unlisted, "expectation", expectation().digest] = RELEASE
        link = await broker.link()
        with pytest.raises(ReleaseRefused) as refused:
            await link.secret("unlisted")
        assert refused.value.reason is Reason.EXPECTATION_MISMATCH
        nothing_released(world)

    with_broker(work)


def test_an_expectation_that_names_another_broker_gets_nothing_from_this_one() -> None:
    other = replace(expectation(), broker=replace(expectation().broker, key="ab" * 32))

    async def work(world: World, broker: Broker) -> None:
        world.owners.releases[RESOURCE, "expectation", other.digest] = RELEASE
        node = await ready_node(run=None)
        measured = run_commitment("confide-expectation", run=RUN, digest=other.digest)
        await node.guest.extend(RuntimeEvent("confide-expectation", measured))
        link = await broker.link(node, expectation=other)
        with pytest.raises(ReleaseRefused) as refused:
            await link.secret(NAME)
        assert refused.value.reason is Reason.EXPECTATION_MISMATCH
        nothing_released(world)

    with_broker(work)


@pytest.mark.parametrize("by_cookie", [False, True])
def test_a_guest_gets_what_was_released_to_a_policy_that_accepts_it(by_cookie: bool) -> None:
    async def work(world: World, broker: Broker) -> None:
        digest = release_to_policy(world.owners, owners_policy())
        guest = Guest(broker)
        assert (await guest.attest()).status_code == 200
        answer = await guest.get(by_cookie=by_cookie)
        assert guest.open(answer) == VALUE
        receipt = receipt_of(answer)
        decision = parse_release_receipt(receipt.payload)
        assert (decision.accepts, decision.against) == ("policy", digest)
        assert decision.jwe == hashlib.sha256(answer.content).digest()
        assert world.log.digests == [receipt.digest]

    with_broker(work)


def test_a_guest_with_an_rsa_key_is_answered_with_oaep() -> None:
    key = rsa.generate_private_key(65537, 3072)
    n = key.public_key().public_numbers().n.to_bytes(384, "big")
    jwk = {"kty": "RSA", "alg": "RSA-OAEP-256", "n": b64url_encode(n), "e": "AQAB"}

    async def work(world: World, broker: Broker) -> None:
        release_to_policy(world.owners, owners_policy())
        guest = Guest(broker)
        await guest.attest(pod=replace(guest.pod(), tee_pubkey=jwk))
        sealed = parse_jwe((await guest.get()).content)
        oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
        content = AESGCM(key.decrypt(sealed.encrypted_key, oaep))
        assert content.decrypt(sealed.iv, sealed.ciphertext + sealed.tag, sealed.aad) == VALUE

    with_broker(work)


def test_the_broker_says_who_it_is_under_its_key() -> None:
    async def work(_world: World, broker: Broker) -> None:
        answer = await broker.http.get(f"{broker.url}/confide/v1/broker")
        signature = base64.b64decode(answer.headers["confide-signature"])
        info = verify_broker_info(answer.content, signature, key=KEYS.key)
        assert (info.seal, info.simulated) == (KEYS.opener.public_key.raw, True)

    with_broker(work)


def test_a_token_says_the_session_and_the_key_and_no_more() -> None:
    async def work(world: World, broker: Broker) -> None:
        guest = Guest(broker)
        await guest.attest()
        text = guest.token.split(".")[1]
        claims = json.loads(b64url_decode(text, what="", reason=Reason.TOKEN_MALFORMED))
        assert set(claims) == {"exp", "iat", "jti", "tee-pubkey"}
        assert claims["exp"] == claims["iat"] + SESSION_SECONDS == _seconds(world) + 300
        assert claims["tee-pubkey"] == guest.pod().tee_pubkey

    with_broker(work)


def _seconds(world: World) -> int:
    return int(world.clock.now().timestamp())


# --- no session -----------------------------------------------------------------------------------


def test_without_evidence_there_is_nothing() -> None:
    async def work(world: World, broker: Broker) -> None:
        guest = Guest(broker)
        refusal(await guest.get(), 401, Reason.SESSION_UNKNOWN)
        # A challenge that was not answered is no session, nor is a name of one in a token.
        await guest.auth()
        refusal(await guest.get(by_cookie=True), 401, Reason.SESSION_UNKNOWN)
        for token in ("x", "e30.e30.", _unsigned()):
            guest.token = token
            refusal(await guest.get(), 401, Reason.SESSION_UNKNOWN)
        for cookie in ("", "A", "=", guest.cookie[:-2] + "AA", guest.cookie + "AA"):
            guest.cookie = cookie
            refusal(await guest.send(b"{}"), 401, Reason.SESSION_UNKNOWN)
        assert world.owners.looked == 0
        assert not world.store.kept

    with_broker(work)


def _unsigned() -> str:
    head = b64url_encode(b'{"alg":"none","typ":"JWT"}')
    return f"{head}.{b64url_encode(json.dumps({'jti': '00' * 32}).encode())}."


@pytest.mark.parametrize("seconds", [-301, 301])
def test_a_challenge_is_good_for_five_minutes_however_clocks_are_set(seconds: int) -> None:
    async def work(world: World, broker: Broker) -> None:
        guest = Guest(broker)
        challenge = (await guest.auth()).json()
        body = guest.pod().exchange(base64.b64decode(challenge["nonce"]))["attestation"]
        world.clock.time += timedelta(seconds=seconds)
        refusal(await guest.send(body), 401, Reason.SESSION_UNKNOWN)
        world.clock.time -= timedelta(seconds=seconds)
        assert (await guest.send(body)).status_code == 200

    with_broker(work)


def test_a_session_ends_and_does_not_come_back() -> None:
    async def work(world: World, broker: Broker) -> None:
        release_to_policy(world.owners, owners_policy())
        guest = Guest(broker)
        await guest.attest()
        world.clock.time += timedelta(seconds=SESSION_SECONDS - 1)
        assert (await guest.get()).status_code == 200
        world.clock.time += timedelta(seconds=1)
        refusal(await guest.get(), 401, Reason.SESSION_UNKNOWN)
        world.clock.time -= timedelta(seconds=60)
        refusal(await guest.get(by_cookie=True), 401, Reason.SESSION_UNKNOWN)

    with_broker(work)


def test_a_restart_ends_every_session_and_a_node_attests_again() -> None:
    async def work() -> None:
        world = World()
        async with world.serving() as first:
            link, guest = await first.link(), Guest(first)
            await link.secret(NAME)
            await guest.attest()
        async with world.serving() as second:
            stale = replace(guest, broker=second)
            refusal(await stale.get(), 401, Reason.SESSION_UNKNOWN)
            refusal(await stale.get(by_cookie=True), 401, Reason.SESSION_UNKNOWN)
            link._http._url, link._http._client = second.url, second.http
            assert (await link.secret(NAME)).value == VALUE

    run(work())


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "status", "reason"),
    [
        ({"version": "0.1.1"}, 401, Reason.PROTOCOL_VERSION),
        ({"version": "0.4.1"}, 401, Reason.PROTOCOL_VERSION),
        ({"version": 4}, 400, Reason.BROKER_FORMAT),
        ({"tee": "sample"}, 401, Reason.TEE_TYPE),
        ({"tee": "az-tdx-vtpm"}, 401, Reason.TEE_TYPE),
        ({"tee": "sgx"}, 401, Reason.TEE_TYPE),
        ({"extra-params": []}, 400, Reason.BROKER_FORMAT),
        ({"extra-params": {"supported-hash-algorithms": ["md5"]}}, 400, Reason.BROKER_FORMAT),
        ({"more": 1}, 400, Reason.BROKER_FORMAT),
    ],
)
def test_another_request_is_refused(members: dict[str, Any], status: int, reason: Reason) -> None:
    async def work(world: World, broker: Broker) -> None:
        answer = await Guest(broker).auth(**members)
        refusal(answer, status, reason)
        assert "set-cookie" not in answer.headers
        assert not world.store.kept

    with_broker(work)


@pytest.mark.parametrize(
    ("extra", "chosen"),
    [
        ("", "sha384"),
        (None, "sha384"),
        ({}, "sha384"),
        ({"supported-hash-algorithms": []}, "sha384"),
        ({"supported-hash-algorithms": ["sha256", "sha512"]}, "sha512"),
        ({"supported-hash-algorithms": ["sm3", "sha256"]}, "sha256"),
    ],
)
def test_the_hash_is_the_first_that_both_know(extra: object, chosen: str) -> None:
    async def work(_world: World, broker: Broker) -> None:
        answer = (await Guest(broker).auth(**{"extra-params": extra})).json()
        assert answer["extra-params"] == {"selected-hash-algorithm": chosen}
        assert len(base64.b64decode(answer["nonce"])) == 32

    with_broker(work)


@pytest.mark.parametrize(
    ("path", "size"),
    [
        ("/kbs/v0/auth", 16 * 1024 + 1),
        ("/kbs/v0/attest", (8 << 20) + 1),
        ("/confide/v1/broker/statements", (4 << 20) + 1),
    ],
)
def test_more_than_is_read_is_refused_before_it_is_read(path: str, size: int) -> None:
    async def work(world: World, broker: Broker) -> None:
        guest = Guest(broker)
        await guest.auth()
        refusal(
            await guest.post(path, bytes(size), cookie=guest.cookie), 413, Reason.LIMIT_EXCEEDED
        )

        async def without_length() -> Any:
            for _ in range(0, size, 4096):
                yield bytes(4096)

        answer = await broker.http.post(
            broker.url + path,
            content=without_length(),
            headers={"cookie": f"kbs-session-id={guest.cookie}"},
        )
        refusal(answer, 413, Reason.LIMIT_EXCEEDED)
        assert not world.store.kept

    with_broker(work)


def test_bytes_that_are_no_attestation_are_counted_and_not_receipted() -> None:
    async def work(world: World, broker: Broker) -> None:
        guest = Guest(broker)
        await guest.auth()
        for _ in range(12):
            answer = await guest.send(b'{"runtime-data":{}}')
            refusal(answer, 400, Reason.BROKER_FORMAT)
            assert "confide-receipt" not in answer.headers
        assert not world.store.kept
        assert [line.split()[1] for line in world.reported] == ["1", "10"]

    with_broker(work)


# --- attestations that are not believed -----------------------------------------------------------


def test_an_attestation_is_accepted_once() -> None:
    async def work(_world: World, broker: Broker) -> None:
        guest = Guest(broker)
        challenge = (await guest.auth()).json()
        body = guest.pod().exchange(base64.b64decode(challenge["nonce"]))["attestation"]
        assert (await guest.send(body)).status_code == 200
        again = await guest.send(body)
        refusal(again, 401, Reason.REPLAYED)
        assert parse_release_receipt(receipt_of(again).payload).reason == "replayed"

    with_broker(work)


def test_of_two_at_once_one_is_accepted() -> None:
    async def work(_world: World, broker: Broker) -> None:
        guest = Guest(broker)
        challenge = (await guest.auth()).json()
        body = guest.pod().exchange(base64.b64decode(challenge["nonce"]))["attestation"]
        both = await asyncio.gather(guest.send(body), guest.send(body))
        assert sorted(answer.status_code for answer in both) == [200, 401]

    with_broker(work)


def _other_nonce(body: Any) -> None:
    body["runtime-data"]["nonce"] = base64.b64encode(b"z" * 32).decode()


def _other_key(body: Any) -> None:
    other = derive_unwrapping_key("P-256", b"m" * 96)
    body["runtime-data"]["tee-pubkey"] = {**other.public.document(), "alg": "ECDH-ES+A256KW"}


def _off_the_curve(body: Any) -> None:
    body["runtime-data"]["tee-pubkey"]["x"] = b64url_encode(bytes(32))


def _more_devices(body: Any) -> None:
    body["tee-evidence"]["additional_evidence"] = " "


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (_other_nonce, Reason.NONCE_MISMATCH),
        (_other_key, Reason.REPORT_DATA_MISMATCH),
        (_off_the_curve, Reason.BROKER_FORMAT),
        (_more_devices, Reason.REPORT_DATA_MISMATCH),
    ],
)
def test_an_attestation_of_something_else_is_refused_before_anybody_is_asked(
    edit: Callable[[Any], None], reason: Reason
) -> None:
    async def work(world: World, broker: Broker) -> None:
        guest = Guest(broker)
        answer = await guest.attest(edit=edit)
        refusal(answer, 401, reason)
        decision = parse_release_receipt(receipt_of(answer).payload)
        assert (decision.reason, decision.resource) == (reason.value, None)
        assert world.asked_vendors == 0
        await broker.settled(1)
        assert world.log.digests == [receipt_of(answer).digest]

    with_broker(work)


def test_a_key_of_no_listed_kind_is_no_attestation() -> None:
    def weak(body: Any) -> None:
        body["runtime-data"]["tee-pubkey"]["alg"] = "RSA1_5"

    async def work(_world: World, broker: Broker) -> None:
        refusal(await Guest(broker).attest(edit=weak), 400, Reason.BROKER_FORMAT)

    with_broker(work)


def test_simulated_evidence_without_its_root_is_refused() -> None:
    async def work(world: World, broker: Broker) -> None:
        refusal(await Guest(broker).attest(), 401, Reason.ROOT_MISMATCH)
        link = await broker.link()
        with pytest.raises(ReleaseRefused) as refused:
            await link.secret(NAME)
        assert refused.value.reason is Reason.ROOT_MISMATCH
        nothing_released(world)

    with_broker(work, config={"roots": VENDOR_ROOTS})


def test_a_debug_guest_is_below_the_floor_whatever_the_owners_say() -> None:
    async def work(world: World, broker: Broker) -> None:
        release_to_policy(world.owners, owners_policy(unsafe_debug=True))
        guest = Guest(broker)
        platform = make_platform(b"tests/simulators", world.clock.now(), parse_fault("debug-td"))
        pod = SimulatedPod(
            platform=platform,
            init_data=guest.pod().init_data,
            firmware_log=encode_ccel(()),
            tee_pubkey=guest.pod().tee_pubkey,
        )
        answer = await guest.attest(pod=pod)
        refusal(answer, 401, Reason.TD_DEBUG)

    with_broker(work)


def test_without_what_a_vendor_has_to_say_nothing_is_decided() -> None:
    async def work(world: World, broker: Broker) -> None:
        world.endorsed = Unavailable("no answer of Intel")
        refusal(await Guest(broker).attest(), 503, None)
        assert not world.store.kept

    with_broker(work)


async def _refused_node(broker: Broker, **changes: Any) -> Reason:
    link = await broker.link(**changes)
    with pytest.raises(ReleaseRefused) as refused:
        await link.secret(NAME)
    return refused.value.reason


def test_the_wrong_node_gets_nothing() -> None:
    async def work(world: World, broker: Broker) -> None:
        found = [
            # Other software than the Expectation names.
            await _refused_node(broker, node=await ready_node("wrong-measurement")),
            # The Expectation of this run was never measured, or that of another run was.
            await _refused_node(broker, node=await ready_node(run=None)),
            await _refused_node(broker, run=b"\x08" * 32),
            # Another Expectation, which the node never measured.
            await _refused_node(broker, expectation=replace(expectation(), name="another")),
            # It answers an old challenge with every quote.
            await _refused_node(broker, node=await _used("replayed-nonce")),
        ]
        assert found == [
            Reason.RTMR2_MISMATCH,
            Reason.EXPECTATION_MISMATCH,
            Reason.EXPECTATION_MISMATCH,
            Reason.EXPECTATION_MISMATCH,
            Reason.REPORT_DATA_MISMATCH,
        ]
        await broker.settled(len(found))
        nothing_released(world)

    with_broker(work)


async def _used(fault: str) -> Any:
    node = await ready_node(fault)
    await node.attest("channel", b"o" * 32, expectation().digest)
    return node


def test_a_model_node_has_no_run_and_an_agent_node_has_one() -> None:
    async def work(_world: World, broker: Broker) -> None:
        assert await _refused_node(broker, run=None) is Reason.BROKER_FORMAT
        assert await _refused_node(broker, role="model", run=RUN) is Reason.BROKER_FORMAT
        assert await _refused_node(broker, role="model", run=None) is Reason.NODE_ROLE_MISMATCH

    with_broker(work)


# --- what owners did not sign ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason",
    [
        Reason.RELEASE_MISSING,
        Reason.RELEASE_PENDING,
        Reason.RELEASE_NOT_YET,
        Reason.RELEASE_EXPIRED,
        Reason.RELEASE_REVOKED,
    ],
)
def test_without_a_release_in_force_nothing_is_released(reason: Reason) -> None:
    async def work(world: World, broker: Broker) -> None:
        link = await broker.link()
        assert (await link.secret(NAME)).value == VALUE
        # The next request of the same session finds what holds then.
        world.owners.releases[RESOURCE, "expectation", expectation().digest] = reason
        with pytest.raises(ReleaseRefused) as refused:
            await link.secret(NAME)
        assert refused.value.reason is reason
        await broker.settled(2)
        decision = parse_release_receipt(logged(world)[-1])
        assert (decision.reason, decision.accepts) == (reason.value, "expectation")
        assert (decision.version, decision.jwe) == (VERSION, None)

    with_broker(work)


def test_a_policy_that_does_not_accept_a_guest_releases_nothing_to_it() -> None:
    async def work(world: World, broker: Broker) -> None:
        guest = Guest(broker)
        await guest.attest()
        refusal(await guest.get(), 403, Reason.RELEASE_MISSING)
        other = release_to_policy(world.owners, owners_policy(mrtd=["00" * 48]))
        answer = await guest.get()
        refusal(answer, 403, Reason.MRTD_MISMATCH)
        decision = parse_release_receipt(receipt_of(answer).payload)
        assert (decision.accepts, decision.against) == ("policy", other)
        # What is no policy accepts nobody, and keeps no other one from accepting.
        release_to_policy(world.owners, b"\xff")
        refusal(await guest.get(), 403, Reason.MRTD_MISMATCH)
        release_to_policy(world.owners, owners_policy())
        assert guest.open(await guest.get()) == VALUE

    with_broker(work)


def test_a_policy_that_says_nothing_of_simulations_accepts_none() -> None:
    async def work(world: World, broker: Broker) -> None:
        genuine = owners_policy().replace(b"unsafe_simulated = true", b"unsafe_simulated = false")
        release_to_policy(world.owners, genuine)
        guest = Guest(broker)
        await guest.attest()
        assert (await guest.get()).status_code == 403

    with_broker(work)


@pytest.mark.parametrize(
    "name", ["acme/secret/other", "acme/secret", "ACME/secret/x", "a/b/c/d", "acme/secret/%00"]
)
def test_a_name_of_nothing_is_not_found(name: str) -> None:
    async def work(world: World, broker: Broker) -> None:
        guest = Guest(broker)
        await guest.attest()
        refusal(await guest.get(name), 404, Reason.RESOURCE_UNKNOWN)
        nothing_released(world)

    with_broker(work)


def test_a_value_that_does_not_open_is_an_outage_for_those_who_may_have_it() -> None:
    async def work(world: World, broker: Broker) -> None:
        world.owners.fails = FormatError("x", reason=Reason.VAULT_FORMAT, clause="x")
        guest = Guest(broker)
        await guest.attest()
        refusal(await guest.get(), 403, Reason.RELEASE_MISSING)
        release_to_policy(world.owners, owners_policy())
        refusal(await guest.get(), 503, None)
        await broker.settled(1)
        nothing_released(world)

    with_broker(work)
