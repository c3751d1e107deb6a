"""Stage `broker`: what its vectors reach, and that verifiers which leave a check out fail them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conformance.contract import answer, make_request
from conformance.generate import _chosen
from conformance.own.broker_case import make
from conformance.runner import Case, case_of, read_index, run_case
from conformance.stages.broker import judge

from confide.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from conformance.verdict import Verdict

VECTORS = Path(__file__).resolve().parents[2] / "conformance" / "vectors"
INDEX = read_index(VECTORS / "broker")
KINDS = sorted({case["kind"] for case in INDEX.cases})
_ALL = list(Reason)
GROUP = _ALL[_ALL.index(Reason.BROKER_FORMAT) : _ALL.index(Reason.VAULT_FORMAT) + 1]


def found(slug: str) -> Case:
    (data,) = (case for case in INDEX.cases if case["id"][4:] == slug)
    return case_of(INDEX, data)


def test_every_reason_of_the_group_has_a_vector() -> None:
    cases = (*INDEX.cases, *read_index(VECTORS / "release").cases)
    assert {str(reason) for reason in GROUP} <= {
        reason for case in cases for reason in case.get("reason", ())
    }


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_accepts_and_refuses(kind: str) -> None:
    outcomes = [case["outcome"] for case in INDEX.cases if case["kind"] == kind]
    assert set(outcomes) == {"accept", "reject"}


def test_the_vectors_are_small() -> None:
    folder = VECTORS / "broker"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 420 * 1024


# A verifier that leaves something out is the real one with that input as it would have to be.
def _of_the_bytes(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    sealed = (folder / case["files"]["state"]).read_bytes()
    return {**case, "digest": hashlib.sha256(sealed).hexdigest()}


def _as_in(slug: str, *names: str) -> Callable[[dict[str, Any], Path], dict[str, Any]]:
    other = found(slug).data
    return lambda case, _folder: {**case, **{name: other[name] for name in names}}


def _with_files_of(slug: str, role: str) -> Callable[[dict[str, Any], Path], dict[str, Any]]:
    name = found(slug).data["files"][role]
    return lambda case, _folder: {**case, "files": {**case["files"], role: name}}


def _timeless(case: dict[str, Any], _folder: Path) -> dict[str, Any]:
    steps = case["steps"]
    return {**case, "steps": [{**step, "at": steps[0]["at"]} for step in steps]}


NODE = "attestation-of-a-node"
RECEIPT = "receipt-of-a-release"
LAX: dict[str, tuple[Callable[[dict[str, Any], Path], dict[str, Any]], list[str]]] = {
    "replays": (_as_in(NODE, "spent"), ["attestation-a-second-time"]),
    "the age of a challenge": (_as_in(NODE, "now", "asked"), ["attestation-too-late"]),
    "the challenge": (_as_in(NODE, "challenge"), ["attestation-of-another-challenge"]),
    "the kind of machine": (_as_in(NODE, "tee"), ["attestation-of-a-node-that-said-snp"]),
    "the roots": (_with_files_of(NODE, "roots"), ["attestation-under-other-roots"]),
    "the key of a broker": (_as_in("info", "signature"), ["info-signed-by-another"]),
    "session and key": (
        _as_in(RECEIPT, "session", "tee_pubkey"),
        ["receipt-about-another-session", "receipt-about-another-tee-pubkey"],
    ),
    "resource and answer": (
        _as_in(RECEIPT, "resource", "jwe"),
        ["receipt-about-another-resource", "receipt-about-another-jwe"],
    ),
    "the nonce in a claim": (
        _as_in("claim-of-p-256", "nonce"),
        ["claim-of-another-nonce-p-256"],
    ),
    "the value of a version": (_as_in("version", "value"), ["version-of-another"]),
    "counter and resource of a state": (
        _as_in("state-saved", "resource"),
        ["state-of-another-resource"],
    ),
    "the digest of a state": (_of_the_bytes, ["state-of-another-digest"]),
    "the size of a state": (_as_in("state-saved", "max_bytes"), ["state-archive-above-its-size"]),
    "the end of a lease": (_timeless, ["lease-that-is-over"]),
    "the revision of a record": (_as_in("record", "revision"), ["record-of-another-revision"]),
}


@pytest.mark.parametrize("what", LAX)
def test_a_verifier_that_does_not_look_at_it_fails(what: str) -> None:
    honest, slugs = LAX[what]

    def lax(case: dict[str, Any], folder: Path) -> Verdict:
        return judge(honest(case, folder), folder)

    for slug in slugs:
        case = found(slug)
        assert run_case(case, judge).passed
        assert run_case(case, lax).difference.startswith("expected reject"), slug


STATED = [case for case in INDEX.cases if "claims" in case]


@pytest.mark.parametrize("case", STATED, ids=lambda case: str(case["id"]))
def test_each_claim_that_a_case_states_is_compared(case: dict[str, Any]) -> None:
    for name in case["claims"]:
        other = {**case, "claims": {**case["claims"], name: "another"}}
        assert run_case(case_of(INDEX, other), judge).difference == name


def _answered(slug: str, **changes: Any) -> tuple[str, str]:
    request = make_request(found(slug))
    request["case"] |= changes
    document, _ = answer(json.dumps(request).encode())
    return document["outcome"], document["reason"]


def test_an_unknown_kind_is_not_judged() -> None:
    assert _answered("version", kind="sample") == ("unsupported", "")
    assert _answered("lease-saved-twice-over", steps=[]) == ("unsupported", "")


@pytest.mark.parametrize(
    ("slug", "changes"),
    [
        (NODE, {"set": {"/nothing/there": 1}}),
        (NODE, {"set": {"/runtime-data/nonce/0": 1}}),
        (NODE, {"challenge": "no hex"}),
        (NODE, {"files": {}}),
        ("state-saved", {"key": "00"}),
        ("version", {"salt": None}),
    ],
)
def test_inputs_that_are_none_are_a_malformed_request(slug: str, changes: dict[str, Any]) -> None:
    assert _answered(slug, **changes) == ("malformed", "request")


def test_a_vector_that_the_verifier_judges_otherwise_is_not_written() -> None:
    wrong = make("resource", "climbs", name="acme/secret/..")
    with pytest.raises(ValueError, match="broker: climbs gets another verdict"):
        list(_chosen("broker", {}, iter([wrong])))


def test_of_two_that_are_kept_for_one_reason_both_become_vectors() -> None:
    names = ("acme", "acme/secret")
    both = [make("resource", name, Reason.RESOURCE_UNKNOWN, name=name) for name in names]
    assert list(_chosen("broker", {}, iter(both))) == both
