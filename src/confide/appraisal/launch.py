"""How a host binds a launch document to hardware: MRCONFIGID (TDX) and HOST_DATA (SEV-SNP).

Clauses: docs/protocols/dstack.md §5, docs/protocols/services.md. The host writes these registers
before the machine starts, so they bind the document by the quote alone, without a log. All zero
means that nobody set them. Inputs come from a verified quote; documents are hostile.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Final, Literal, NoReturn

from confide.appraisal.steps import Refused
from confide.crypto.ethereum import keccak256
from confide.errors import FormatError, Reason
from confide.wire.json import Members, jcs, parse_json

if TYPE_CHECKING:
    from confide.appraisal.dstack_log import DstackEvents
    from confide.wire.json import JsonValue

__all__ = [
    "MRCONFIG_UNSET",
    "MrConfigV3",
    "init_data_digest",
    "judge_mrconfigid",
    "mr_config_v3_hash",
    "mrconfigid_form1",
    "mrconfigid_form2",
    "mrconfigid_form3",
    "parse_mr_config_v3",
    "require_host_data",
    "require_init_data",
    "require_snp_compose",
]

MRCONFIG_UNSET: Final = bytes(48)
_CLAUSE: Final = "docs/protocols/dstack.md#5"
# From: docs/protocols/dstack.md §5: the byte that form 2 hashes for each provider.
_KIND_BYTES: Final = {"none": 0, "local": 1, "local-sgx": 1, "kms": 2, "tpm": 3}
# Form 3 and the event log name the same provider differently.
_V3_NAMES: Final = {"local-sgx": "local"}
_V3_PREFIX: Final = b"dstack-mr-config-v3:\0"
_MAX_DOCUMENT_BYTES: Final = 64 * 1024
_ALGORITHMS: Final = ("sha256", "sha384", "sha512")


def _padded(head: bytes, size: int = 48) -> bytes:
    return head[:size].ljust(size, b"\0")


def mrconfigid_form1(compose_hash: bytes) -> bytes:
    """Return the 48 bytes of form 1: 01 ‖ `compose_hash` (32 bytes) ‖ zeros."""
    return _padded(b"\x01" + compose_hash)


def mrconfigid_form2(
    compose_hash: bytes, *, app_id: bytes, provider: str, provider_id: bytes
) -> bytes:
    """
    Return the 48 bytes of form 2: 02 ‖ Keccak-256 over hash, app, kind of provider, its id.

    `provider` is none, local (or local-sgx), kms or tpm; `Refused` for another one.
    """
    kind = _KIND_BYTES.get(provider)
    if kind is None:
        raise Refused(Reason.MRCONFIGID_MISMATCH, "form 2 knows no such key provider")
    return _padded(b"\x02" + keccak256(compose_hash + app_id + bytes([kind]) + provider_id))


def mr_config_v3_hash(document: bytes) -> bytes:
    """Return the 32 bytes that form 3, and HOST_DATA of SEV-SNP, hold for `document`."""
    return hashlib.sha256(_V3_PREFIX + document).digest()


def mrconfigid_form3(document: bytes) -> bytes:
    """Return the 48 bytes of form 3: 03 ‖ hash of the exact document ‖ zeros."""
    return _padded(b"\x03" + mr_config_v3_hash(document))


@dataclass(frozen=True, slots=True, kw_only=True)
class MrConfigV3:
    """The document of form 3. None where a member does not occur; `key_provider` is a name."""

    compose_hash: bytes
    key_provider: str
    app_id: bytes | None = None
    gpu_policy_hash: bytes | None = None
    init_script_hashes: tuple[bytes, ...] | None = None
    instance_id: bytes | None = None
    key_provider_id: bytes | None = None

    def encode(self) -> bytes:
        """Return the canonical bytes, in which the member order is fixed and nothing is spare."""
        members: dict[str, object] = {
            "version": 3,
            "compose_hash": self.compose_hash.hex(),
            "key_provider": self.key_provider,
        }
        for name in ("app_id", "gpu_policy_hash", "instance_id", "key_provider_id"):
            value = getattr(self, name)
            if value is not None:
                members[name] = value.hex()
        if self.init_script_hashes is not None:
            members["init_script_hashes"] = [item.hex() for item in self.init_script_hashes]
        return jcs(members)


def parse_mr_config_v3(document: bytes) -> MrConfigV3:
    """
    Parse the document of form 3, which must be canonical; unknown members are refused.

    Raises `FormatError`. **Does not check** that any register holds its hash.
    """
    if len(document) > _MAX_DOCUMENT_BYTES:
        _refuse_document(f"{len(document)} bytes, at most {_MAX_DOCUMENT_BYTES}")
    value = parse_json(document, what="mr_config", reason=Reason.SERVICE_FORMAT)
    members = Members(value, what="mr_config", reason=Reason.SERVICE_FORMAT)
    members.integer("version", low=3, high=3)
    found = MrConfigV3(
        compose_hash=members.hexes("compose_hash", 32),
        key_provider=members.text("key_provider", max_chars=64),
        app_id=members.hexes("app_id", 20) if members.has("app_id") else None,
        gpu_policy_hash=_optional(members, "gpu_policy_hash", 32),
        init_script_hashes=_scripts(members),
        instance_id=_optional(members, "instance_id", None),
        key_provider_id=_optional(members, "key_provider_id", None),
    )
    members.end()
    if found.encode() != document:
        _refuse_document("not in its canonical form")
    return found


def _refuse_document(why: str) -> NoReturn:
    raise FormatError(f"mr_config: {why}", reason=Reason.SERVICE_FORMAT, clause=_CLAUSE)


def _optional(members: Members, name: str, size: int | None) -> bytes | None:
    return members.hexes(name, size) if members.has(name) else None


def _scripts(members: Members) -> tuple[bytes, ...] | None:
    if not members.has("init_script_hashes"):
        return None
    found = []
    for text in members.texts("init_script_hashes", max_items=5):
        one = Members({"hash": text}, what="init script", reason=Reason.SERVICE_FORMAT)
        found.append(one.hexes("hash", 32))
    return tuple(found)


def judge_mrconfigid(
    register: bytes, events: DstackEvents, *, document: bytes | None = None
) -> Literal[0, 1, 2, 3]:
    """
    Require that `register` (48 bytes, of a verified quote) binds what the log says.

    `events` come from a replayed log; `document` is the one of form 3 where it was presented,
    otherwise it is rebuilt from `events` in each of its possible shapes. Returns the form, 0 for a
    register that nobody set: whether that is acceptable is the caller's policy. Raises `Refused`
    (MRCONFIGID_MISMATCH), or `FormatError` for a malformed document.
    """
    if register == MRCONFIG_UNSET:
        return 0
    if register[:1] == b"\x01":
        _require(register == mrconfigid_form1(events.compose_hash), "form 1 names another app")
        return 1
    provider = events.key_provider
    if register[:1] == b"\x02":
        name, ident = (provider.name, provider.id) if provider else ("none", b"")
        expected = mrconfigid_form2(
            events.compose_hash, app_id=events.app_id, provider=name, provider_id=ident
        )
        _require(register == expected, "form 2 names another app or key provider")
        return 2
    _require(register[:1] == b"\x03", "an unknown form")
    documents = _documents(events) if document is None else (document,)
    matching = [raw for raw in documents if register == mrconfigid_form3(raw)]
    _require(bool(matching), "form 3 names another document")
    if document is not None:
        _require_agreement(parse_mr_config_v3(document), events)
    return 3


def _require(holds: bool, why: str) -> None:  # noqa: FBT001 - a condition, not an option
    if not holds:
        raise Refused(Reason.MRCONFIGID_MISMATCH, why)


def _require_agreement(document: MrConfigV3, events: DstackEvents) -> None:
    provider = events.key_provider
    pairs = (
        (document.compose_hash, events.compose_hash),
        (document.app_id, events.app_id),
        (document.gpu_policy_hash, events.gpu_policy_hash),
        (document.instance_id, events.instance_id),
        (document.init_script_hashes, events.init_script_hashes),
        (document.key_provider_id, provider.id if provider else b""),
    )
    agrees = all(said is None or said == measured for said, measured in pairs)
    _require(agrees, "the document of form 3 and the log differ")
    if provider is not None:
        names = {provider.name, _V3_NAMES.get(provider.name, provider.name)}
        _require(document.key_provider in names, "the document of form 3 and the log differ")


def _documents(events: DstackEvents) -> tuple[bytes, ...]:
    """Every shape that the document of form 3 can have for these events: a hash decides."""
    provider = events.key_provider
    name = provider.name if provider else "none"
    optional = product(
        {name: None, _V3_NAMES.get(name, name): None},
        (events.app_id, None),
        dict.fromkeys((events.gpu_policy_hash, None)),
        dict.fromkeys((events.init_script_hashes or None, None)),
        (events.instance_id, None),
        dict.fromkeys((provider.id if provider else b"", None)),
    )
    return tuple(
        MrConfigV3(
            compose_hash=events.compose_hash,
            key_provider=kind,
            app_id=app_id,
            gpu_policy_hash=gpu_policy,
            init_script_hashes=scripts,
            instance_id=instance,
            key_provider_id=ident,
        ).encode()
        for kind, app_id, gpu_policy, scripts, instance, ident in optional
    )


def init_data_digest(document: bytes, algorithm: str, *, size: Literal[32, 48]) -> bytes:
    """
    Return what a register of `size` bytes holds for init-data: its hash, cut or filled with zeros.

    `algorithm` is the one that the document declares (sha256, sha384, sha512), `size` 48 for
    MRCONFIGID, 32 for HOST_DATA. Raises `FormatError` for another algorithm.
    """
    if algorithm not in _ALGORITHMS:
        raise FormatError(
            "init-data: an unknown hash algorithm", reason=Reason.SERVICE_FORMAT, clause=_CLAUSE
        )
    return _padded(hashlib.new(algorithm, document).digest(), size)


def require_init_data(register: bytes, document: bytes, algorithm: str) -> None:
    """
    Require that MRCONFIGID (48 bytes) or HOST_DATA (32 bytes) holds the hash of `document`.

    Raises `Refused`: MRCONFIGID_MISMATCH or HOST_DATA_MISMATCH. Zero is a mismatch: unset.
    """
    size: Literal[32, 48] = 48 if len(register) == 48 else 32
    reason = Reason.MRCONFIGID_MISMATCH if size == 48 else Reason.HOST_DATA_MISMATCH
    if register != init_data_digest(document, algorithm, size=size):
        unset = not register.strip(b"\0")
        raise Refused(reason, "nobody set it" if unset else "it names other init-data")


def require_host_data(host_data: bytes, document: bytes) -> MrConfigV3:
    """
    Require that HOST_DATA (32 bytes, of a verified SNP report) holds the form 3 hash.

    Returns the document, parsed: with no registers to replay, it is all that binds the app.
    Raises `Refused` (HOST_DATA_MISMATCH), or `FormatError`.
    """
    if host_data != mr_config_v3_hash(document):
        unset = not host_data.strip(b"\0")
        raise Refused(
            Reason.HOST_DATA_MISMATCH, "nobody set it" if unset else "it names another document"
        )
    return parse_mr_config_v3(document)


def require_snp_compose(host_data: bytes, launch: bytes, vm_config: JsonValue) -> MrConfigV3:
    """
    Require that a dstack machine on SEV-SNP was launched with the compose document `launch`.

    HOST_DATA commits to the document of form 3, which comes as `mr_config` in the machine
    description, and that one names the compose hash. Raises `Refused` (EVIDENCE_MISSING,
    HOST_DATA_MISMATCH, COMPOSE_HASH_MISMATCH), or `FormatError`.
    """
    said = vm_config.get("mr_config") if isinstance(vm_config, dict) else None
    if not isinstance(said, str) or not said:
        raise Refused(Reason.EVIDENCE_MISSING, "no mr_config was presented")
    document = require_host_data(host_data, said.encode("utf-8"))
    if hashlib.sha256(launch).digest() != document.compose_hash:
        raise Refused(Reason.COMPOSE_HASH_MISMATCH, "the document is not the one that was launched")
    return document
