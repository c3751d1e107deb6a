"""What a Compose file starts, and how more could be started: docs/protocols/workload.md 2 to 5.

Reads values, believes nothing, and says nothing about what an image does. A switch counts as off
only where it is plainly off.
"""

from __future__ import annotations

import posixpath
import re
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.workload_code import SHELLS, observe_code, observe_environment
from confide.appraisal.workload_types import Image, Observation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.wire.json import JsonValue

__all__ = ["DOC", "is_on", "observe_path", "observe_services", "observe_top", "safe_name"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DOC: Final = "docs/protocols/workload.md"
_PLAIN: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
# From: distribution/reference: domain, path components, tag, digest.
_REFERENCE: Final = re.compile(
    r"(?P<repository>[A-Za-z0-9][A-Za-z0-9._/-]{0,255}(?::[0-9]{1,5}/[A-Za-z0-9._/-]{1,255})?)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?"
    r"(?:@sha256:(?P<digest>[0-9a-f]{64}))?\Z"
)
_ENGINE_SOCKETS: Final = (
    "docker.sock", "containerd.sock", "podman.sock", "crio.sock", "cri-dockerd.sock",
    "buildkitd.sock",
)  # fmt: skip
_QUOTE_SOCKETS: Final = ("dstack.sock", "tappd.sock")
# Folders of the host that hold such sockets.
_SOCKET_FOLDERS: Final = frozenset(
    {
        "/", "/run", "/var", "/var/run", "/run/containerd", "/var/run/containerd", "/run/podman",
        "/var/run/podman", "/run/docker", "/var/run/docker", "/run/crio", "/var/run/crio",
    }
)  # fmt: skip
_QUOTE_FOLDERS: Final = frozenset(
    {"/", "/run", "/var", "/var/run", "/run/dstack", "/var/run/dstack"}
)
_BECOMES_THE_MACHINE: Final = frozenset(
    {"ALL", "SYS_ADMIN", "SYS_MODULE", "SYS_PTRACE", "SYS_RAWIO", "BPF", "DAC_READ_SEARCH"}
)
_NAMESPACES: Final = ("network_mode", "ipc", "uts", "userns_mode", "cgroup")
_LOOKED_UP_AGAIN: Final = frozenset({"always", "daily", "weekly", "every"})
_LOGIN: Final = 22
_PORTS: Final = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")
_LOCAL_LOGS: Final = ("json-file", "local", "none", "journald")
_NVIDIA: Final = re.compile(r"(?:/dev/nvidia[A-Za-z0-9/_-]*|nvidia\.com/gpu=\S+)(?::\S*)?\Z")
_ELSEWHERE: Final = (
    "env_file", "extends", "volumes_from", "configs", "secrets", "models", "external_links",
    "label_file",
)  # fmt: skip
# From: Compose specification, top-level elements; `version` is older, and ignored.
_TOP: Final = _words("services volumes networks configs secrets name version include models")
_HOOKS: Final = ("post_start", "pre_stop", "develop")
# From: Compose specification, services: what neither widens what runs nor who can look.
_HARMLESS: Final = _words(
    "annotations blkio_config cgroup_parent command container_name cpu_count cpu_percent "
    "cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpus cpuset depends_on deploy "
    "attach cap_drop dns dns_opt dns_search domainname entrypoint env environment expose "
    "extra_hosts gpus group_add healthcheck hostname image init isolation "
    "labels links mac_address mem_limit mem_reservation mem_swappiness memswap_limit "
    "name networks oom_kill_disable oom_score_adj pids_limit platform ports profiles "
    "read_only restart runtime scale shm_size stdin_open stop_grace_period stop_signal "
    "storage_opt sysctls tmpfs tty ulimits user working_dir args"
)
_JUDGED_MEMBERS: Final = _words(
    "build cap_add device_cgroup_rules devices logging pid privileged provider pull_policy "
    "security_opt use_api_socket volumes"
) | {*_NAMESPACES, *_ELSEWHERE, *_HOOKS}


def safe_name(name: str, number: int) -> str:
    """Return `name` where it is plain, else its number: text of a document stays out of words."""
    return name if _PLAIN.match(name) else f"#{number}"


def is_on(value: JsonValue) -> bool:
    """Whether a switch is anything but plainly off or absent."""
    if isinstance(value, str):
        return value.strip().lower() not in {"", "false", "no", "off", "n", "0"}
    return value not in (None, False, 0)


def _see(
    claim: ClaimName, place: str, text: str, number: int, *, contradicts: bool = False
) -> Observation:
    return Observation(claim, place, text, f"{DOC}#{number}", contradicts)


def _texts(value: JsonValue) -> Iterator[tuple[str, str]]:
    """Yield (index, text) of a list of strings, of a mapping's keys, or of one string."""
    if isinstance(value, str):
        yield "", value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield f"[{number}]", item if isinstance(item, str) else ""
    elif isinstance(value, dict):
        for number, name in enumerate(value):
            yield f"[{number}]", name


def observe_services(
    services: JsonValue, where: str
) -> tuple[tuple[Image, ...], tuple[Observation, ...]]:
    """Return the images and observations of `services`, a mapping or a list of named ones."""
    named: list[tuple[str, JsonValue]] = []
    if isinstance(services, dict):
        named = [
            (f"{where}.{safe_name(name, number)}", value)
            for number, (name, value) in enumerate(services.items())
        ]
    elif isinstance(services, list):
        named = [(f"{where}[{number}]", value) for number, value in enumerate(services)]
    images: list[Image] = []
    seen: list[Observation] = []
    for place, value in named:
        if not isinstance(value, dict):
            seen.append(
                _see(ClaimName.IMAGES_PINNED, place, "a service that cannot be read", 2,
                     contradicts=True)
            )  # fmt: skip
            continue
        image, found = _observe_image(value, place)
        images += [] if image is None else [image]
        seen += found
        for observe in _OBSERVERS:
            seen += observe(value, place)
    if not images and not any(found.claim is ClaimName.IMAGES_PINNED for found in seen):
        # Nothing is no image that is named by digest.
        seen.append(_see(ClaimName.IMAGES_PINNED, where, "no images can be read", 2))
    if not named:
        seen.append(_see(ClaimName.WORKLOAD_COMPLETE, where, "no services can be read", 3))
    return tuple(images), tuple(seen)


def _parse_image(reference: str, place: str) -> Image:
    found = None if "$" in reference else _REFERENCE.match(reference)
    service = place.rpartition(".")[2]
    if found is None:
        return Image(service, reference, "", None, f"{place}.image")
    digest = found.group("digest")
    return Image(
        service,
        reference,
        found.group("repository"),
        bytes.fromhex(digest) if digest else None,
        f"{place}.image",
    )


def _observe_image(
    service: dict[str, JsonValue], place: str
) -> tuple[Image | None, list[Observation]]:
    """2: every image is named by digest."""
    reference = service.get("image")
    image = _parse_image(reference, place) if isinstance(reference, str) else None
    made = [name for name in ("build", "provider") if name in service]
    seen: list[tuple[str, str]] = [
        (name, "made on the machine, from whatever is there") for name in made
    ]
    if service.get("pull_policy") == "build":
        seen.append(("pull_policy", "made on the machine, from whatever is there"))
    if image is None and not made:
        seen.append(("", "no image is named"))
    if image is not None and not image.pinned:
        seen.append(("image", _why_unpinned(image)))
        policy = service.get("pull_policy")
        if isinstance(policy, str) and policy.partition("_")[0] in _LOOKED_UP_AGAIN:
            seen.append(("pull_policy", "a tag that is looked up again: replaced while it runs"))
    return image, [
        _see(ClaimName.IMAGES_PINNED, f"{place}.{member}".rstrip("."), text, 2, contradicts=True)
        for member, text in seen
    ]


def _why_unpinned(image: Image) -> str:
    if "$" in image.reference:
        return "the operator chooses the image"
    return "named by tag, not by digest" if image.repository else "a reference that cannot be read"


def _privileges(service: dict[str, JsonValue], place: str) -> Iterator[Observation]:
    """3: the container is the machine, or nearly."""
    complete = ClaimName.WORKLOAD_COMPLETE
    if is_on(service.get("privileged")):
        yield _see(
            complete, f"{place}.privileged", "privileged: it is the machine", 3, contradicts=True
        )
    for at, capability in _texts(service.get("cap_add")):
        name = capability.upper().removeprefix("CAP_")
        grave = name in _BECOMES_THE_MACHINE or "$" in name or not name
        text = "a capability that makes it the machine" if grave else "a capability added"
        yield _see(complete, f"{place}.cap_add{at}", text, 3, contradicts=grave)
    for at, option in _texts(service.get("security_opt")):
        plain = option.replace(" ", "").replace("=", ":").lower()
        if plain not in {"no-new-privileges", "no-new-privileges:true"}:
            yield _see(complete, f"{place}.security_opt{at}", "confinement is changed", 3)
    devices = service.get("devices")
    items: list[JsonValue] = devices if isinstance(devices, list) else []
    for number, each in enumerate(items):
        if not (isinstance(each, str) and _NVIDIA.match(each)):
            yield _see(complete, f"{place}.devices[{number}]", "a device of the machine", 3)


def _requests(service: dict[str, JsonValue], place: str) -> Iterator[Observation]:
    """3: devices that are not NVIDIA's, asked for in other members."""
    complete = ClaimName.WORKLOAD_COMPLETE
    if service.get("device_cgroup_rules"):
        yield _see(complete, f"{place}.device_cgroup_rules", "devices of the machine", 3)
    for member, requests in (("gpus", service.get("gpus")), ("deploy", _reserved(service))):
        for number, each in enumerate(requests if isinstance(requests, list) else []):
            driver = each.get("driver") if isinstance(each, dict) else None
            if driver not in (None, "nvidia"):
                yield _see(complete, f"{place}.{member}[{number}]", "a device of the machine", 3)


def _reserved(service: dict[str, JsonValue]) -> JsonValue:
    """Return the devices that `deploy` asks for."""
    found: JsonValue = service
    for name in ("deploy", "resources", "reservations", "devices"):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _namespaces(service: dict[str, JsonValue], place: str) -> Iterator[Observation]:
    """3: parts of the machine that the container shares."""
    complete = ClaimName.WORKLOAD_COMPLETE
    pid = service.get("pid")
    if pid is not None:
        grave = not (isinstance(pid, str) and pid.startswith("service:"))
        text = "sees the machine's processes" if grave else "sees another container's processes"
        yield _see(complete, f"{place}.pid", text, 3, contradicts=grave)
    for member in _NAMESPACES:
        value = service.get(member)
        if isinstance(value, str) and (value == "host" or "$" in value or "container:" in value):
            yield _see(complete, f"{place}.{member}", "shares the machine's namespace", 3)


def _sources(volume: JsonValue) -> tuple[str, str]:
    """Return source and target of one mount; the source is empty where there is none."""
    if isinstance(volume, str):
        if "$" in volume:
            return volume, ""
        source, _, rest = volume.partition(":")
        return (source, rest.partition(":")[0]) if rest else ("", source)
    if isinstance(volume, dict):
        where, into = volume.get("source", volume.get("src")), volume.get("target")
        return where if isinstance(where, str) else "", into if isinstance(into, str) else ""
    return "$", ""


def _mounts(service: dict[str, JsonValue], place: str) -> Iterator[Observation]:
    """3 and 4: sockets and paths of the machine."""
    if is_on(service.get("use_api_socket")):
        yield _see(
            ClaimName.WORKLOAD_COMPLETE,
            f"{place}.use_api_socket",
            "holds the container engine's socket: starts whatever it likes",
            3,
            contradicts=True,
        )
    volumes = service.get("volumes")
    for number, volume in enumerate(volumes if isinstance(volumes, list) else []):
        source, target = _sources(volume)
        at = f"{place}.volumes[{number}]"
        kind = volume.get("type", "volume") if isinstance(volume, dict) else "volume"
        if kind not in ("volume", "tmpfs") and not source.startswith(("/", ".", "~")):
            yield _see(ClaimName.WORKLOAD_COMPLETE, at, "a mount from outside the document", 3)
        yield from observe_path(source, target, at)


def observe_path(source: str, target: str, at: str) -> Iterator[Observation]:
    """Yield what mounting `source` of the machine at `target` means."""
    path = posixpath.normpath(source) if source else ""
    path = "/" + path.lstrip("/") if path.startswith("/") else path
    engine, quotes = (
        any(name in path or name == posixpath.basename(target) for name in names)
        for names in (_ENGINE_SOCKETS, _QUOTE_SOCKETS)
    )
    if engine or path in _SOCKET_FOLDERS:
        yield _see(
            ClaimName.WORKLOAD_COMPLETE,
            at,
            "holds the container engine's socket: starts whatever it likes",
            3,
            contradicts=True,
        )
    elif (source.startswith(("/", ".", "~")) or "$" in source) and not quotes:
        yield _see(ClaimName.WORKLOAD_COMPLETE, at, "a path of the machine", 3)
    if quotes or path in _QUOTE_FOLDERS:
        yield _see(
            ClaimName.KEYS, at, "can have anything quoted and derive the application's keys", 4
        )


def _access(service: dict[str, JsonValue], place: str) -> Iterator[Observation]:
    """5: ways in, and ways out for logs."""
    access = ClaimName.OPERATOR_ACCESS
    reference = service.get("image")
    if isinstance(reference, str) and SHELLS.search(reference.partition("@")[0].lower()):
        yield _see(access, f"{place}.image", "a remote shell", 5, contradicts=True)
    ports = service.get("ports")
    for number, port in enumerate(ports if isinstance(ports, list) else []):
        target = port.get("target") if isinstance(port, dict) else port
        text = str(target).rpartition(":")[2].partition("/")[0]
        found = _PORTS.fullmatch(text)
        if found and int(found.group(1)) <= _LOGIN <= int(found.group(2) or found.group(1)):
            yield _see(access, f"{place}.ports[{number}]", "a port for logins", 5, contradicts=True)
    logging = service.get("logging")
    driver = logging.get("driver") if isinstance(logging, dict) else None
    if logging is not None and driver is not None and driver not in _LOCAL_LOGS:
        yield _see(access, f"{place}.logging", "logs leave the machine", 5)


def _elsewhere(service: dict[str, JsonValue], place: str) -> Iterator[Observation]:
    """3: what this document does not hold, and what this version does not know."""
    complete = ClaimName.WORKLOAD_COMPLETE
    for member in _ELSEWHERE:
        if service.get(member):
            yield _see(complete, f"{place}.{member}", "depends on something outside", 3)
    for member in _HOOKS:
        if service.get(member):
            yield _see(complete, f"{place}.{member}", "runs something besides its image", 3)
    unknown = [
        number
        for number, member in enumerate(service)
        if member not in _HARMLESS | _JUDGED_MEMBERS and not member.startswith("x-")
    ]
    if unknown:
        yield _see(complete, place, f"{len(unknown)} member(s) that are not known", 3)


def observe_top(document: dict[str, JsonValue]) -> Iterator[Observation]:
    """Yield what stands beside the services: included files, volumes and networks of others."""
    complete = ClaimName.WORKLOAD_COMPLETE
    if document.get("include"):
        yield _see(complete, "include", "depends on something outside", 3)
        yield _see(ClaimName.IMAGES_PINNED, "include", "images are named somewhere else", 2)
    unknown = [name for name in document if name not in _TOP and not name.startswith("x-")]
    if unknown:
        yield _see(complete, "$", f"{len(unknown)} member(s) that are not known", 3)
    for place, volume in _named(document, "volumes"):
        options = volume.get("driver_opts")
        device = options.get("device") if isinstance(options, dict) else None
        if isinstance(device, str):
            yield from observe_path(device, "", place)
        kind = options.get("type") if isinstance(options, dict) else None
        plain = volume.get("driver") in (None, "local") and kind in (None, "none", "tmpfs", "bind")
        if is_on(volume.get("external")) or not plain:
            yield _see(complete, place, "a volume from outside the document", 3)
    for place, network in _named(document, "networks"):
        alone = network.get("driver") in (None, "bridge") and network.get("name") != "host"
        if is_on(network.get("external")) or not alone:
            yield _see(complete, place, "a network that others are in", 3)


def _named(
    document: dict[str, JsonValue], member: str
) -> Iterator[tuple[str, dict[str, JsonValue]]]:
    entries = document.get(member)
    for number, (name, entry) in enumerate(entries.items() if isinstance(entries, dict) else ()):
        if isinstance(entry, dict):
            yield f"{member}.{safe_name(name, number)}", entry


_OBSERVERS: Final = (
    _privileges,
    _requests,
    _namespaces,
    _mounts,
    _access,
    _elsewhere,
    observe_code,
    observe_environment,
)
