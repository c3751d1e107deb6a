"""Read a launch document: which images it starts, and what it leaves open. Pure.

Clauses: docs/protocols/workload.md. The document is hostile bytes, even when hardware measured
it: its author may be the one to be doubted.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.workload_compose import DOC, is_on, observe_services, observe_top
from confide.appraisal.workload_types import Image, Observation, Workload
from confide.errors import FormatError, Reason, Unsupported
from confide.wire.json import JsonLimits, parse_json
from confide.wire.toml import parse_toml
from confide.wire.yaml import parse_yaml

if TYPE_CHECKING:
    from confide.wire.json import JsonValue
    from confide.wire.service import LaunchDocument

__all__ = ["Image", "Observation", "Workload", "read_workload"]

_REASON: Final = Reason.SERVICE_FORMAT
# From: dstack, app-compose.json holds at most 256 kB.
_MAX_BYTES: Final = 256 * 1024
_JUDGED: Final = frozenset(
    {ClaimName.IMAGES_PINNED, ClaimName.WORKLOAD_COMPLETE, ClaimName.OPERATOR_ACCESS}
)
_MAX_NAMES: Final = 256
# From: reference of dstack, app-compose.json, manifests 1 to 3.
_MEMBERS: Final = frozenset(
    {
        "manifest_version",
        "version",
        "name",
        "features",
        "runner",
        "docker_compose_file",
        "docker_config",
        "snapshotter",
        "storage_fs",
        "swap_size",
        "event_log_version",
        "init_script",
        "pre_launch_script",
        "public_logs",
        "public_sysinfo",
        "public_tcbinfo",
        "kms_enabled",
        "gateway_enabled",
        "tproxy_enabled",
        "salt",
        "local_key_provider_enabled",
        "key_provider",
        "key_provider_id",
        "allowed_envs",
        "no_instance_id",
        "secure_time",
        "port_policy",
        "verity_volumes",
        "requirements",
        "bash_script",
    }
)
_VERITY_ROOT: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})\Z")


def read_workload(document: LaunchDocument) -> Workload:
    """
    Read a document of kind `dstack-compose`, `docker-compose`, `tinfoil-config` or `init-data`.

    **Does not check** that hardware measured these bytes, nor what an image does once it runs.

    Raises `FormatError` for a document that is not of its kind; `Unsupported` for other kinds;
    `ConfigurationError` where the document holds YAML and PyYAML is not installed.
    """
    readers = {
        "dstack-compose": _read_app_compose,
        "docker-compose": _read_compose,
        "tinfoil-config": _read_tinfoil,
        "init-data": _read_init_data,
    }
    reader = readers.get(document.kind)
    if reader is None:
        raise Unsupported("a launch document of a kind that is not read here")
    if len(document.raw) > _MAX_BYTES:
        raise _refusal(f"launch document: {len(document.raw)} bytes, at most {_MAX_BYTES}")
    return reader(document.raw, document.kind)


def _refusal(why: str) -> FormatError:
    return FormatError(why, reason=_REASON, clause=f"{DOC}#1")


def _object(value: JsonValue, what: str) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise _refusal(f"{what}: not an object")
    return value


def _see(
    claim: ClaimName, place: str, text: str, number: int, *, contradicts: bool = False
) -> Observation:
    return Observation(claim, place, text, f"{DOC}#{number}", contradicts)


def _read_compose(raw: bytes, kind: str) -> Workload:
    images, seen = _compose(parse_yaml(raw, what="Compose file", reason=_REASON))
    return Workload(kind, hashlib.sha256(raw).digest(), images, seen, _JUDGED)


def _compose(value: JsonValue) -> tuple[tuple[Image, ...], tuple[Observation, ...]]:
    document = _object(value, "Compose file")
    images, seen = observe_services(document.get("services"), "services")
    return images, (*seen, *observe_top(document))


def _read_tinfoil(raw: bytes, kind: str) -> Workload:
    value = parse_yaml(raw, what="Tinfoil configuration", reason=_REASON)
    document = _object(value, "Tinfoil configuration")
    images, seen = observe_services(document.get("containers"), "containers")
    return Workload(kind, hashlib.sha256(raw).digest(), images, seen, _JUDGED)


def _read_app_compose(raw: bytes, kind: str) -> Workload:
    limits = JsonLimits(_MAX_BYTES, 16)
    value = parse_json(raw, what="app-compose.json", reason=_REASON, limits=limits)
    document = _object(value, "app-compose.json")
    images: tuple[Image, ...] = ()
    seen: list[Observation] = []
    runner, compose = document.get("runner"), document.get("docker_compose_file")
    if isinstance(compose, str):
        images, found = _compose(
            parse_yaml(compose.encode(), what="docker_compose_file", reason=_REASON)
        )
        seen += found
    elif compose is not None:
        raise _refusal("app-compose.json: docker_compose_file is not a string")
    if runner not in ("docker-compose", "nerdctl-compose") or compose is None:
        text = "a script starts what it likes, and is not interpreted"
        seen += [
            _see(ClaimName.WORKLOAD_COMPLETE, "runner", text, 3, contradicts=True),
            _see(ClaimName.IMAGES_PINNED, "runner", text, 2, contradicts=True),
        ]
    unknown = len([name for name in document if name not in _MEMBERS])
    if unknown:
        text = f"{unknown} member(s) that are not known"
        seen.append(_see(ClaimName.WORKLOAD_COMPLETE, "$", text, 3))
    seen += (*_scripts(document), *_switches(document), *_keys(document), *_gpus(document))
    return Workload(
        kind,
        hashlib.sha256(raw).digest(),
        images,
        tuple(seen),
        _JUDGED | {ClaimName.KEY_LIFETIME},
        _environment(document),
        _verity_roots(document),
    )


def _scripts(document: dict[str, JsonValue]) -> list[Observation]:
    """3: scripts beside the containers."""
    names = [name for name in ("pre_launch_script", "init_script") if document.get(name)]
    text = "a script runs before the containers, and is not interpreted"
    return [_see(ClaimName.WORKLOAD_COMPLETE, name, text, 3) for name in names]


def _environment(document: dict[str, JsonValue]) -> tuple[str, ...]:
    names = document.get("allowed_envs", [])
    if not isinstance(names, list) or len(names) > _MAX_NAMES:
        raise _refusal(f"app-compose.json: allowed_envs is no list of at most {_MAX_NAMES}")
    if not all(isinstance(name, str) for name in names):
        raise _refusal("app-compose.json: allowed_envs holds something that is not a string")
    return tuple(str(name) for name in names)


def _switches(document: dict[str, JsonValue]) -> list[Observation]:
    """5: what the outside and the operator see and choose."""
    seen = []
    texts = {
        "public_logs": "what containers print is served to anyone",
        "public_sysinfo": "the state of the machine is served to anyone",
        "public_tcbinfo": "what was measured is served to anyone",
    }
    for name, text in texts.items():
        # Absent counts as on: the defaults changed between versions.
        if is_on(document.get(name, True)):
            grave = name == "public_logs"
            seen.append(_see(ClaimName.OPERATOR_ACCESS, name, text, 5, contradicts=grave))
    if document.get("allowed_envs"):
        text = "environment that the operator chooses and nothing measures"
        seen.append(_see(ClaimName.OPERATOR_ACCESS, "allowed_envs", text, 5))
    return seen


def _keys(document: dict[str, JsonValue]) -> list[Observation]:
    """6: keys that outlive the code."""
    text = "keys follow the application's identity and outlive this version"
    names = [
        name for name in ("kms_enabled", "local_key_provider_enabled") if is_on(document.get(name))
    ]
    if document.get("key_provider", "none") != "none":
        names.append("key_provider")
    features = document.get("features")
    if isinstance(features, list) and "kms" in features:
        # How the first manifest said `kms_enabled`.
        names.append("features")
    return [_see(ClaimName.KEY_LIFETIME, name, text, 6) for name in names]


def _gpus(document: dict[str, JsonValue]) -> list[Observation]:
    """7: what the machine itself asks of its GPUs before it starts."""
    requirements = document.get("requirements")
    policy = requirements.get("gpu_policy") if isinstance(requirements, dict) else None
    if not isinstance(policy, dict):
        return []
    where = "requirements.gpu_policy"
    seen = [
        _see(ClaimName.GPU, f"{where}.{name}", "a GPU in a weaker state is let in", 7,
             contradicts=True)
        for name in ("allow_devtools", "allow_debug", "allow_insecure_boot")
        if is_on(policy.get(name))
    ]  # fmt: skip
    if policy.get("attest_gpu") is False:
        text = "the machine does not ask its GPUs for evidence"
        seen.append(_see(ClaimName.GPU, f"{where}.attest_gpu", text, 7))
    return seen


def _verity_roots(document: dict[str, JsonValue]) -> tuple[str, ...]:
    volumes = document.get("verity_volumes", [])
    if not isinstance(volumes, list) or len(volumes) > _MAX_NAMES:
        raise _refusal(f"app-compose.json: verity_volumes is no list of at most {_MAX_NAMES}")
    roots = (volume.get("verity_root") for volume in volumes if isinstance(volume, dict))
    found = (_VERITY_ROOT.match(root) for root in roots if isinstance(root, str))
    return tuple(root.group(1) for root in found if root is not None)


def _read_init_data(raw: bytes, kind: str) -> Workload:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refusal("init-data: not UTF-8") from error
    document = parse_toml(text, what="init-data", reason=_REASON, max_chars=_MAX_BYTES)
    data = document.get("data")
    if document.get("algorithm") not in ("sha256", "sha384", "sha512"):
        raise _refusal("init-data: no known algorithm")
    if not isinstance(document.get("version"), str) or not isinstance(data, dict):
        raise _refusal("init-data: no version or no data")
    policy = data.get("policy.rego")
    grave = not isinstance(policy, str) or not policy.strip()
    why = (
        "no policy: the host starts what it likes"
        if grave
        else "a policy decides what starts; it is measured and not interpreted"
    )
    seen = [
        _see(claim, "data.policy.rego", why, 8, contradicts=grave)
        for claim in (ClaimName.IMAGES_PINNED, ClaimName.WORKLOAD_COMPLETE)
    ]
    seen += [
        _see(ClaimName.KEY_LIFETIME, f"data.{name}", "keys and secrets come from a broker", 8)
        for name in ("aa.toml", "cdh.toml")
        if isinstance(content := data.get(name), str) and "url" in content
    ]
    judged = frozenset({ClaimName.IMAGES_PINNED, ClaimName.WORKLOAD_COMPLETE})
    return Workload(kind, hashlib.sha256(raw).digest(), (), tuple(seen), judged)
