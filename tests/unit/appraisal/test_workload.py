"""Launch documents: every way to start something else, to look in, to choose later, is observed."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pytest

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.workload import Workload, read_workload
from confide.errors import FormatError, Reason, Unsupported
from confide.wire.service import LaunchDocument

if TYPE_CHECKING:
    from pathlib import Path

HEX = "5618a93a78c9ac9173e7ebf7c8af173bd675be6832a2f8c2a9a7149ac2678f54"
IMAGE = f"registry.example:5000/team/app:1.2@sha256:{HEX}"
COMPLETE, PINNED = ClaimName.WORKLOAD_COMPLETE, ClaimName.IMAGES_PINNED
ACCESS, KEYS, LIFE = ClaimName.OPERATOR_ACCESS, ClaimName.KEYS, ClaimName.KEY_LIFETIME
CLOSED = {
    "manifest_version": "3",
    "name": "demo",
    "runner": "docker-compose",
    "public_logs": False,
    "public_sysinfo": False,
    "public_tcbinfo": False,
    "kms_enabled": False,
    "allowed_envs": [],
}


def read(raw: bytes | str, kind: str = "docker-compose") -> Workload:
    return read_workload(
        LaunchDocument(kind=kind, raw=raw if isinstance(raw, bytes) else raw.encode())
    )


def compose(**service: Any) -> Workload:
    return read(json.dumps({"services": {"web": {"image": IMAGE, **service}}}))


def dstack(**members: Any) -> Workload:
    document = {**CLOSED, "docker_compose_file": f"services:\n  a:\n    image: {IMAGE}\n"}
    return read(json.dumps({**document, **members}), "dstack-compose")


def seen(workload: Workload) -> set[tuple[ClaimName, str, bool]]:
    return {(found.claim, found.place, found.contradicts) for found in workload.observations}


def test_a_closed_document_shows_its_claims() -> None:
    workload = dstack()
    assert seen(workload) == set()
    assert {claim for claim in ClaimName if workload.shows(claim)} == {
        COMPLETE,
        PINNED,
        ACCESS,
        LIFE,
    }
    image = workload.images[0]
    assert (image.repository, image.digest) == (
        "registry.example:5000/team/app",
        bytes.fromhex(HEX),
    )
    assert (image.service, image.place, image.pinned) == ("a", "services.a.image", True)


def named(value: object) -> str:
    """Name a case the same in every process: a set has no order of its own."""
    plain = sorted(map(str, value)) if isinstance(value, set) else value
    return json.dumps(plain)[:50]


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("nginx", "nginx"),
        ("nginx:1.27", "nginx"),
        ("registry.example:5000/a/b:tag", "registry.example:5000/a/b"),
        (f"nginx@sha256:{HEX[:-1]}", ""),
        (f"nginx@sha256:{HEX.upper()}", ""),
        (f"nginx@sha512:{HEX}{HEX}", ""),
        (f"nginx@sha256:{HEX}\n", ""),
        ("nginx:$TAG", ""),
        (f"${{IMAGE:-nginx@sha256:{HEX}}}", ""),
        (f"nginx@sha256:{HEX}$X", ""),
        ("", ""),
        ("a b", ""),
    ],
)
def test_an_image_that_is_not_named_by_digest_is_not_pinned(
    reference: str, repository: str
) -> None:
    workload = compose(image=reference)
    assert workload.unpinned == workload.images
    assert workload.images[0].repository == repository
    assert seen(workload) == {(PINNED, "services.web.image", True)}
    assert not workload.shows(PINNED)


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ({"build": "."}, {(PINNED, "services.web.build", True)}),
        ({"provider": {"type": "x"}}, {(PINNED, "services.web.provider", True)}),
        ({"pull_policy": "build"}, {(PINNED, "services.web.pull_policy", True)}),
        ({"pull_policy": "always"}, set()),
        (
            {"image": "nginx", "pull_policy": "always"},
            {(PINNED, "services.web.image", True), (PINNED, "services.web.pull_policy", True)},
        ),
        (
            {"image": "nginx", "pull_policy": "every_12h"},
            {(PINNED, "services.web.image", True), (PINNED, "services.web.pull_policy", True)},
        ),
        ({"image": None}, {(PINNED, "services.web", True)}),
        # Becoming the machine.
        ({"privileged": True}, {(COMPLETE, "services.web.privileged", True)}),
        ({"privileged": "yes"}, {(COMPLETE, "services.web.privileged", True)}),
        ({"privileged": "${X}"}, {(COMPLETE, "services.web.privileged", True)}),
        ({"privileged": False}, set()),
        ({"privileged": "false"}, set()),
        ({"pid": "host"}, {(COMPLETE, "services.web.pid", True)}),
        ({"pid": "service:b"}, {(COMPLETE, "services.web.pid", False)}),
        ({"cap_add": ["SYS_ADMIN"]}, {(COMPLETE, "services.web.cap_add[0]", True)}),
        ({"cap_add": ["cap_sys_ptrace"]}, {(COMPLETE, "services.web.cap_add[0]", True)}),
        ({"cap_add": ["NET_BIND_SERVICE", "ALL"]},
         {(COMPLETE, "services.web.cap_add[0]", False),
          (COMPLETE, "services.web.cap_add[1]", True)}),
        ({"security_opt": ["no-new-privileges:true"]}, set()),
        ({"security_opt": ["seccomp:unconfined"]},
         {(COMPLETE, "services.web.security_opt[0]", False)}),
        ({"devices": ["/dev/nvidia0:/dev/nvidia0", "/dev/mem"]},
         {(COMPLETE, "services.web.devices[1]", False)}),
        ({"device_cgroup_rules": ["c 1:* rwm"]},
         {(COMPLETE, "services.web.device_cgroup_rules", False)}),
        ({"network_mode": "host"}, {(COMPLETE, "services.web.network_mode", False)}),
        ({"network_mode": "none", "ipc": "private"}, set()),
        # The machine's paths and sockets.
        ({"use_api_socket": True}, {(COMPLETE, "services.web.use_api_socket", True)}),
        ({"volumes": ["data:/data", "/data"]}, set()),
        ({"volumes": ["./x:/x"]}, {(COMPLETE, "services.web.volumes[0]", False)}),
        ({"volumes": ["${DIR}:/x"]}, {(COMPLETE, "services.web.volumes[0]", False)}),
        ({"volumes": ["/var/run/docker.sock:/x:ro"]},
         {(COMPLETE, "services.web.volumes[0]", True)}),
        ({"volumes": ["//run//../run/docker.sock:/x"]},
         {(COMPLETE, "services.web.volumes[0]", True)}),
        ({"volumes": ["${S:-/run/docker.sock}:/x:ro"]},
         {(COMPLETE, "services.web.volumes[0]", True)}),
        ({"volumes": [{"type": "bind", "source": "/run/podman/podman.sock", "target": "/s"}]},
         {(COMPLETE, "services.web.volumes[0]", True)}),
        ({"volumes": ["named:/var/run/docker.sock"]},
         {(COMPLETE, "services.web.volumes[0]", True)}),
        ({"volumes": ["/var/run:/x"]},
         {(COMPLETE, "services.web.volumes[0]", True), (KEYS, "services.web.volumes[0]", False)}),
        ({"volumes": ["/:/host"]},
         {(COMPLETE, "services.web.volumes[0]", True), (KEYS, "services.web.volumes[0]", False)}),
        ({"volumes": ["/var/run/dstack.sock:/var/run/dstack.sock"]},
         {(KEYS, "services.web.volumes[0]", False)}),
        ({"volumes": ["/var/run/tappd.sock:/x"]}, {(KEYS, "services.web.volumes[0]", False)}),
        ({"volumes": [1]}, {(COMPLETE, "services.web.volumes[0]", False)}),
        # What this document does not hold.
        ({"env_file": ".env"}, {(COMPLETE, "services.web.env_file", False)}),
        ({"extends": {"file": "x"}}, {(COMPLETE, "services.web.extends", False)}),
        ({"volumes_from": ["a"]}, {(COMPLETE, "services.web.volumes_from", False)}),
        ({"post_start": [{"command": "x"}]}, {(COMPLETE, "services.web.post_start", False)}),
        ({"newly_invented": 1}, {(COMPLETE, "services.web", False)}),
        ({"x-note": 1}, set()),
        # Ways in and out.
        ({"image": f"linuxserver/openssh-server@sha256:{HEX}"},
         {(ACCESS, "services.web.image", True)}),
        ({"image": f"tsl0922/ttyd:1@sha256:{HEX}"}, {(ACCESS, "services.web.image", True)}),
        ({"ports": ["2222:22"]}, {(ACCESS, "services.web.ports[0]", True)}),
        ({"ports": ["127.0.0.1:2222:22/tcp"]}, {(ACCESS, "services.web.ports[0]", True)}),
        ({"ports": [{"target": 22}]}, {(ACCESS, "services.web.ports[0]", True)}),
        ({"ports": ["22:8080", 443]}, set()),
        ({"logging": {"driver": "gelf"}}, {(ACCESS, "services.web.logging", False)}),
        ({"logging": {"driver": "json-file"}}, set()),
    ],
    ids=named,
)  # fmt: skip
def test_what_a_service_leaves_open(
    service: dict[str, Any], expected: set[tuple[ClaimName, str, bool]]
) -> None:
    assert seen(compose(**service)) == expected


def test_members_in_odd_shapes_are_no_crash() -> None:
    odd: tuple[Any, ...] = (None, 0, 1, "", "x", [], [1], [[]], [{}], {}, {"a": {}}, {"driver": []})
    members = [
        "image", "build", "pull_policy", "privileged", "pid", "cap_add", "security_opt", "devices",
        "network_mode", "volumes", "ports", "logging", "env_file", "use_api_socket", "configs",
    ]  # fmt: skip
    for member in members:
        for value in odd:
            compose(**{member: value})
    for value in odd:
        read(json.dumps({"services": value}))
        read(json.dumps({"services": {"a": value}, "volumes": value, "include": value}))
        for member in ("runner", "public_logs", "key_provider", "requirements", "init_script"):
            dstack(**{member: value})


def test_what_stands_beside_the_services() -> None:
    workload = read(
        json.dumps(
            {
                "include": ["other.yaml"],
                "services": {"a": {"image": IMAGE}, "we ird\n": {"image": "x"}},
                "volumes": {"v": {"driver_opts": {"type": "none", "o": "bind", "device": "/"}}},
            }
        )
    )
    assert seen(workload) == {
        (COMPLETE, "include", False),
        (PINNED, "include", False),
        (COMPLETE, "volumes.v", True),
        (KEYS, "volumes.v", False),
        (PINNED, "services.#1.image", True),
    }


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"public_logs": True}, {(ACCESS, "public_logs", True)}),
        ({"public_logs": None}, set()),
        ({"public_sysinfo": True}, {(ACCESS, "public_sysinfo", False)}),
        ({"public_tcbinfo": True}, {(ACCESS, "public_tcbinfo", False)}),
        ({"allowed_envs": ["A"]}, {(ACCESS, "allowed_envs", False)}),
        ({"kms_enabled": True}, {(LIFE, "kms_enabled", False)}),
        ({"local_key_provider_enabled": True}, {(LIFE, "local_key_provider_enabled", False)}),
        ({"key_provider": "tpm"}, {(LIFE, "key_provider", False)}),
        ({"key_provider": "none"}, set()),
        ({"pre_launch_script": "x"}, {(COMPLETE, "pre_launch_script", False)}),
        ({"init_script": ["x"]}, {(COMPLETE, "init_script", False)}),
        ({"runner": "bash", "docker_compose_file": None, "bash_script": "x"},
         {(COMPLETE, "runner", True), (PINNED, "runner", True)}),
        ({"requirements": {"gpu_policy": {"allow_debug": True}}},
         {(ClaimName.GPU, "requirements.gpu_policy.allow_debug", True)}),
        ({"requirements": {"gpu_policy": {"attest_gpu": False}}},
         {(ClaimName.GPU, "requirements.gpu_policy.attest_gpu", False)}),
    ],
    ids=named,
)  # fmt: skip
def test_what_an_app_compose_leaves_open(
    members: dict[str, Any], expected: set[tuple[ClaimName, str, bool]]
) -> None:
    assert seen(dstack(**members)) == expected


def test_absent_switches_count_as_on() -> None:
    bare = {
        "runner": "docker-compose",
        "docker_compose_file": f"services: {{a: {{image: '{IMAGE}'}}}}",
    }
    workload = read(json.dumps(bare), "dstack-compose")
    assert {found.place for found in workload.about(ACCESS)} == {
        "public_logs",
        "public_sysinfo",
        "public_tcbinfo",
    }
    assert workload.about(ACCESS)[0].contradicts


def test_measured_data_and_environment_are_told() -> None:
    workload = dstack(
        allowed_envs=["A", "B"],
        verity_volumes=[{"source": "s", "verity_root": HEX, "target": "/weights"}],
    )
    assert workload.allowed_environment == ("A", "B")
    assert workload.verity_roots == (HEX,)


def test_a_tinfoil_configuration_names_containers() -> None:
    text = f"cvm-version: 0.1\ncontainers:\n  - name: a\n    image: {IMAGE}\n  - image: nginx\n"
    workload = read(text, "tinfoil-config")
    assert [image.pinned for image in workload.images] == [True, False]
    assert seen(workload) == {(PINNED, "containers[1].image", True)}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"policy.rego": "package p"},
         {(PINNED, "data.policy.rego", False), (COMPLETE, "data.policy.rego", False)}),
        ({}, {(PINNED, "data.policy.rego", True), (COMPLETE, "data.policy.rego", True)}),
        ({"policy.rego": " ", "cdh.toml": "[kbc]\nurl = 'x'"},
         {(PINNED, "data.policy.rego", True), (COMPLETE, "data.policy.rego", True),
          (LIFE, "data.cdh.toml", False)}),
    ],
    ids=["policy", "none", "empty"],
)  # fmt: skip
def test_init_data_leaves_it_to_a_policy(
    data: dict[str, str], expected: set[tuple[ClaimName, str, bool]]
) -> None:
    lines = ['version = "0.1.0"', 'algorithm = "sha384"', "[data]"]
    lines += [f"{json.dumps(name)} = {json.dumps(text)}" for name, text in data.items()]
    workload = read("\n".join(lines), "init-data")
    assert seen(workload) == expected
    assert workload.images == ()
    assert not workload.shows(PINNED)


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        ("dstack-compose", b""),
        ("dstack-compose", b"[]"),
        ("dstack-compose", b'{"a":1,"a":2}'),
        ("dstack-compose", b'{"docker_compose_file":1}'),
        ("dstack-compose", b'{"docker_compose_file":"a: ["}'),
        ("dstack-compose", b'{"allowed_envs":[1]}'),
        ("dstack-compose", b'{"allowed_envs":"A"}'),
        ("dstack-compose", b'{"verity_volumes":{}}'),
        ("dstack-compose", b" " * (256 * 1024 + 1)),
        ("docker-compose", b"[]"),
        ("docker-compose", b"\xff"),
        ("tinfoil-config", b"1"),
        ("init-data", b"\xff"),
        ("init-data", b"x ="),
        ("init-data", b'version = "0.1.0"'),
        ("init-data", b'version = "0.1.0"\nalgorithm = "md5"\n[data]'),
        ("init-data", b'version = 1\nalgorithm = "sha384"\n[data]'),
        ("init-data", b'version = "0.1.0"\nalgorithm = []\n[data]'),
    ],
)
def test_what_is_not_of_its_kind_is_refused(kind: str, raw: bytes) -> None:
    with pytest.raises(FormatError) as refusal:
        read(raw, kind)
    assert refusal.value.reason is Reason.SERVICE_FORMAT


def test_other_kinds_are_not_silently_empty() -> None:
    with pytest.raises(Unsupported):
        read(b"{}", "confide-expectation")


def test_a_genuine_launcher_is_seen_through(vectors: Path) -> None:
    raw = (vectors / "dstack" / "near-mpc-app_compose.json").read_bytes()
    workload = read(raw, "dstack-compose")
    assert workload.sha256 == hashlib.sha256(raw).digest()
    assert workload.shows(PINNED)
    assert workload.about(COMPLETE)[0].place == "services.launcher.volumes[0]"
    assert workload.about(COMPLETE)[0].contradicts
    assert [found.place for found in workload.about(KEYS)] == ["services.launcher.volumes[1]"]


def test_the_derived_documents_read_alike(vectors: Path) -> None:
    cases = json.loads((vectors / "dstack" / "app-compose-cases-derived.json").read_text())["cases"]
    read_cases = [read(base64.b64decode(case["bytes_b64"]), "dstack-compose") for case in cases]
    assert [found.sha256.hex() for found in read_cases] == [case["sha256"] for case in cases]
    assert len({(found.images, found.observations) for found in read_cases}) == 1
