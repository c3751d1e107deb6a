"""Candidates of stage `broker`, kind `attestation`: a node, a guest, and one fault at a time."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from confide.appraisal.eventlog import run_commitment
from confide.broker.session import CHALLENGE_SECONDS
from confide.crypto.jwe import derive_unwrapping_key
from confide.errors import Reason
from confide.expectation import (
    AgentSpec,
    BrokerSpec,
    Expectation,
    GpuSpec,
    HardwareSpec,
    Limits,
    ModelSpec,
    NodeSpec,
)
from confide.node.attester import Attester
from confide.node.keys import make_node_keys
from confide.node.measure import measure_ready
from confide.simulator.boot import measure_boot
from confide.simulator.machine import (
    SimulatedCollateral,
    SimulatedGuest,
    make_platform,
    parse_fault,
    simulated_roots,
)
from confide.simulator.trustee import SimulatedPod
from confide.trust.roots import encode_roots_file
from confide.wire.ccel import encode_ccel
from confide.wire.json import JsonValue, b64encode, jcs
from confide.wire.jwe import EcPoint, encode_wrapping_key, thumbprint
from confide.wire.kbs import NodeEvidence, encode_attestation, runtime_claim
from confide.wire.keyset import format_time
from confide.wire.rtmr_log import RuntimeEvent
from conformance.own.broker_case import BROKER, make
from conformance.own.candidate import NOW, SEED, drawn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.appraisal.binding import Purpose
    from confide.wire.evidence import EvidenceBundle
    from conformance.own.candidate import Candidate

__all__ = ["candidates", "expectation"]

_CHALLENGE: Final = drawn("challenge")
_RUN: Final = drawn("run")
_SOFTWARE: Final = drawn("node software")
_KERNEL: Final = "6.1.0-simulated"
_INIT_DATA: Final = b'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"aa.toml" = "x"\n'
_KEY: Final = derive_unwrapping_key("P-256", drawn("session key", 96)).public
_OTHER_KEY: Final = derive_unwrapping_key("P-256", drawn("another session key", 96)).public
_ROOTS: Final = simulated_roots(SEED, NOW)
# Where a node's own part stands in a body.
_NODE: Final = "/tee-evidence/primary_evidence/confide"
_COLLATERAL: Final = make_platform(SEED, NOW, ()).collateral()


@dataclass(slots=True)
class _Entropy:
    """Bytes by the number of the draw: the port `Entropy` of a node that is the same each time."""

    count: int = field(default=0)

    def token(self, size: int) -> bytes:
        self.count += 1
        return drawn(f"node keys {self.count}", size)


@cache
def expectation() -> Expectation:
    """Return the Expectation of the agent, which asks this broker for a secret and a state."""
    platform = make_platform(SEED, NOW, ())
    boot = measure_boot(role="agent", software=_SOFTWARE, kernel=_KERNEL)
    node = NodeSpec(
        mrtd=(boot.mrtd.hex(),),
        rtmr0=(boot.rtmr0.hex(),),
        rtmr1=(boot.rtmr1.hex(),),
        rtmr2=(boot.rtmr2.hex(),),
        mrconfigid=(boot.mrconfigid.hex(),),
        software=(_SOFTWARE.hex(),),
    )
    hardware = HardwareSpec(
        roots=_ROOTS.name,
        tcb_status=("UpToDate",),
        min_tcb_evaluation=18,
        max_collateral_days=30,
        mrseam=(platform.mr_seam.hex(),),
        platform_flags=(),
        platforms=(platform.ppid.hex(),),
        accept_not_proven=("gpu-colocation", "physical-attack"),
    )
    return Expectation(
        name="agent",
        hardware=hardware,
        gpu=GpuSpec(count=1, mode="SPT", chips=(), drivers=(), vbios=()),
        agent_node=node,
        model_node=node,
        agent=AgentSpec(drawn("image").hex(), "batch"),
        model=ModelSpec("a model", drawn("weights").hex()),
        egress=(),
        recipients=("caller",),
        broker=BrokerSpec(BROKER.public_key.hex(), "acme", ("dataset",), state=True),
        limits=Limits(),
    )


@cache
def _bundle(
    *,
    purpose: Purpose = "release",
    nonce: bytes = _CHALLENGE,
    key: EcPoint = _KEY,
    fault: str = "",
    measured: bool = True,
) -> EvidenceBundle:
    """Return the evidence of an agent node that measured the Expectation of the run."""

    async def attest() -> EvidenceBundle:
        platform = make_platform(SEED, NOW, parse_fault(fault))
        guest = SimulatedGuest(platform, role="agent", software=_SOFTWARE, kernel=_KERNEL)
        keys = make_node_keys(
            role="agent",
            software=_SOFTWARE,
            now=NOW,
            lifetime=timedelta(days=1),
            entropy=_Entropy(),
        )
        # As `measure_node` does, with a version that is not that of this package.
        said = jcs({"role": "agent", "software": _SOFTWARE.hex(), "version": "0.0.0"})
        await guest.extend(RuntimeEvent("confide-node", said))
        await measure_ready(guest)
        digest = expectation().digest
        if measured:
            payload = run_commitment("confide-expectation", run=_RUN, digest=digest)
            await guest.extend(RuntimeEvent("confide-expectation", payload))
        attester = Attester(keys.keyset, guest, SimulatedCollateral(platform), None)
        claim = runtime_claim(nonce=_CHALLENGE, tee_pubkey=encode_wrapping_key(key))
        return await attester.attest(
            purpose=purpose,
            nonce=nonce,
            expectation=digest,
            claim=None if purpose == "channel" else claim,
        )

    return asyncio.run(attest())


def _body(bundle: EvidenceBundle) -> bytes:
    """Return the attestation body of the node that shows `bundle`."""
    shown = NodeEvidence("agent", expectation().canonical(), _RUN, bundle)
    return encode_attestation(shown, nonce=_CHALLENGE, key=_KEY)


def _case(
    slug: str,
    body: bytes,
    reason: Reason | None = None,
    *,
    roots: bytes = b"",
    collateral: bytes = b"",
    late: timedelta = timedelta(0),
    **changes: Any,
) -> Candidate:
    session = {
        "challenge": _CHALLENGE.hex(),
        "hash": "sha384",
        "tee": "tdx",
        "asked": format_time(NOW),
        "spent": False,
        "now": format_time(NOW + late),
        **changes,
    }
    files = {"attestation.json": body, "roots.json": roots or encode_roots_file(_ROOTS)}
    if collateral:
        files["collateral.json"] = collateral
    return make("attestation", f"attestation-{slug}", reason, files, **session)


def _claims(body: bytes, **more: object) -> dict[str, object]:
    return {
        "session": hashlib.sha256(_CHALLENGE).hexdigest(),
        "evidence": hashlib.sha256(body).hexdigest(),
        "tee_pubkey": thumbprint(_KEY).hex(),
        **more,
    }


def _sessions() -> Iterator[Candidate]:
    """Yield the honest node, and its body in other sessions."""
    body = _body(_bundle())
    claims = _claims(
        body, role="agent", expectation=expectation().digest.hex(), run=_RUN.hex()
    )  # fmt: skip
    yield _case("of-a-node", body, claims=claims)
    last, second = timedelta(seconds=CHALLENGE_SECONDS), timedelta(seconds=1)
    yield _case("in-the-last-second", body, late=last)
    yield _case("too-late", body, Reason.SESSION_UNKNOWN, late=last + second)
    other = drawn("another challenge").hex()
    yield _case("of-another-challenge", body, Reason.NONCE_MISMATCH, challenge=other)
    yield _case("a-second-time", body, Reason.REPLAYED, spent=True)
    yield _case("of-a-node-that-said-snp", body, Reason.TEE_TYPE, tee="snp")
    elsewhere = encode_roots_file(simulated_roots(b"another platform", NOW))
    yield _case("under-other-roots", body, Reason.SIMULATED_NOT_ALLOWED, roots=elsewhere)
    tomorrow = timedelta(days=1)
    yield _case(
        "of-keys-that-expired", body, Reason.KEYSET_EXPIRED, late=tomorrow,
        asked=format_time(NOW + tomorrow),
    )  # fmt: skip


def _edited(slug: str, reason: Reason, pointer: str, value: JsonValue) -> Candidate:
    """Return the honest node's body with one member changed."""
    return _case(slug, _body(_bundle()), reason, set={pointer: value})


def _presented() -> Iterator[Candidate]:
    """Yield what a node may not present: steps broker/2 to broker/4."""
    form, key, other = Reason.BROKER_FORMAT, "/runtime-data/tee-pubkey", _OTHER_KEY
    off = encode_wrapping_key(EcPoint("P-256", _KEY.point[:32] * 2))
    yield _edited("of-a-key-off-its-curve", form, key, off)
    additional = "/tee-evidence/additional_evidence"
    yield _edited("with-additional-evidence", form, additional, "{}")
    yield _edited("with-init-data", form, "/init-data", {"format": "toml", "body": ""})
    yield _edited("of-an-agent-without-a-run", form, f"{_NODE}/run", None)
    nothing = b64encode(b"{}")
    mismatch = Reason.EXPECTATION_MISMATCH
    yield _edited("of-no-expectation", mismatch, f"{_NODE}/expectation", nothing)
    for_claim = _body(_bundle(purpose="claim"))
    yield _case("made-for-a-claim", for_claim, Reason.STATEMENT_MISMATCH)
    stale = _body(_bundle(nonce=drawn("another challenge")))
    yield _case("made-for-another-challenge", stale, Reason.NONCE_MISMATCH)
    yield _edited(
        "made-for-another-key", Reason.CLAIM_MISMATCH, key, encode_wrapping_key(other)
    )  # fmt: skip
    quote = b64encode(_bundle(key=other).quote)
    yield _edited(
        "with-another-quote",
        Reason.REPORT_DATA_MISMATCH,
        f"{_NODE}/evidence/evidence/tdx/quote",
        quote,
    )


def _believed() -> Iterator[Candidate]:
    """Yield what is refused at broker/5 and broker/6."""
    renamed = b64encode(replace(expectation(), name="another").canonical())
    mismatch = Reason.EXPECTATION_MISMATCH
    yield _edited("of-another-expectation", mismatch, f"{_NODE}/expectation", renamed)
    yield _case("of-a-debug-td", _body(_bundle(fault="debug-td")), Reason.TD_DEBUG)
    yield _case("of-a-run-not-measured", _body(_bundle(measured=False)), mismatch)
    yield _edited("of-another-run", mismatch, f"{_NODE}/run", drawn("another run").hex())


def _guest(fault: str = "") -> bytes:
    pod = SimulatedPod(
        platform=make_platform(SEED, NOW, parse_fault(fault)),
        init_data=_INIT_DATA,
        firmware_log=encode_ccel(()),
        tee_pubkey=encode_wrapping_key(_KEY),
    )
    return pod.exchange(_CHALLENGE)["attestation"]


def _guests() -> Iterator[Candidate]:
    body = _guest()
    told: dict[str, Any] = {"collateral": _COLLATERAL}
    yield _case("of-a-guest", body, claims=_claims(body, role="guest"), **told)
    yield _case("of-a-guest-a-second-time", body, Reason.REPLAYED, spent=True, **told)
    mine, theirs = (jcs(encode_wrapping_key(key)) for key in (_KEY, _OTHER_KEY))
    swapped = body.replace(mine, theirs)
    yield _case("of-a-guest-for-another-key", swapped, Reason.REPORT_DATA_MISMATCH, **told)
    yield _case("of-a-guest-by-another-hash", body, Reason.REPORT_DATA_MISMATCH, hash="sha512",
                **told)  # fmt: skip
    yield _case("of-a-guest-nobody-vouches-for", body, Reason.COLLATERAL_MISSING)
    yield _case("of-a-debug-guest", _guest("debug-td"), Reason.TD_DEBUG, **told)


def candidates() -> Iterator[Candidate]:
    """Yield every candidate."""
    yield from _sessions()
    yield from _presented()
    yield from _believed()
    yield from _guests()
