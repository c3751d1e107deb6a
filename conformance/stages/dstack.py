"""Stage `dstack`: the samples of vectors/dstack, through the reader of the format and the judges.

Format: vectors/dstack/README.md. `kind` says what the files of a case hold; `expected` are facts.
A file of derived values is accepted when each of its values is what this package computes. What a
case does not restrict is accepted here; signatures of quotes are judged where collateral is given.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import struct
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from confide.appraisal.dstack import DstackRegisters, judge_dstack
from confide.appraisal.dstack_keys import key_claim, recover_signer
from confide.appraisal.dstack_policy import DstackPolicy
from confide.appraisal.eventlog import replay_ccel
from confide.appraisal.launch import mrconfigid_form1, mrconfigid_form3
from confide.appraisal.tdx import appraise_tdx
from confide.appraisal.tdx_policy import PlatformFlag, TdxPolicy, UnsafeAny
from confide.crypto.ed25519 import Ed25519Signer
from confide.crypto.ethereum import derive_secp256k1_public_key
from confide.crypto.recoverable import compress_point
from confide.errors import FormatError, Reason, Rejected, Unsupported
from confide.formats.dstack import FORMAT
from confide.trust.intel import INTEL_TDX_ANCHOR
from confide.wire.ccel import parse_ccel
from confide.wire.collateral import TcbStatus
from confide.wire.json import parse_json
from confide.wire.rtmr_log import RuntimeEvent, extend_register
from confide.wire.service import Capture
from confide.wire.tdx import parse_quote
from conformance.stages.dstack_facts import answer_facts, differences
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from confide.wire.service import Attester

__all__ = ["judge"]

_ANY: Final = UnsafeAny()
_OPEN: Final = DstackPolicy(
    compose_hashes=_ANY,
    os_image_hashes=_ANY,
    key_providers=_ANY,
    storage=_ANY,
    unsafe_no_launch_document=True,
    unsafe_unset_mrconfigid=True,
)
_LONG: Final = timedelta(days=36500)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_HEX: Final = re.compile(rb"[0-9a-f]+")
# What a kind is called that holds evidence of a machine, in whatever wrapping.
_EVIDENCE: Final = ("quote", "attest", "ra-tls")
# What a file holds, by a part of its name; the first that fits.
_ROLES: Final = {
    "tcb_info": "info",
    "app_compose": "app_compose",
    "event_log": "event_log",
    "vm_config": "vm_config",
    "info": "info",
    "quote": "quote",
}
Files = dict[str, bytes]


def judge(case: dict[str, Any], folder: Path) -> Verdict:
    """Judge one case of an index in `folder`."""
    files: Files = {}
    for item in case["files"]:
        raw = (folder / item["file"]).read_bytes()
        stated = item.get("sha256", hashlib.sha256(raw).hexdigest())
        if hashlib.sha256(raw).hexdigest() != stated:
            raise Unclear(f"{item['file']} is not the file that the case names")
        files[item["file"]] = raw
    kind = str(case.get("kind", ""))
    found = next((run for name, run in _KINDS.items() if kind.startswith(name)), None)
    if found is None and any(word in kind.lower() for word in _EVIDENCE):
        found = _answer
    if found is None:
        raise Unclear(f"kind {kind}")
    try:
        verdict = found(case, files)
    except FormatError as error:
        return Verdict("reject", error.reason, (error.reason,), error.what)
    except Unsupported as error:
        return Verdict("unsupported", detail=str(error))
    return verdict


def _only(files: Files) -> bytes:
    (raw,) = files.values()
    return raw


def _documents(files: Files) -> Files:
    """Return the files under the names that a capture gives them."""
    if len(files) == 1:
        return {"quote": _only(files)}
    found: Files = {}
    for name, raw in files.items():
        part = next((part for part in _ROLES if part in name.replace("-", "_")), None)
        if part is not None:
            found[_ROLES[part]] = raw
    beside = {name: found.pop(name) for name in ("event_log", "vm_config") if name in found}
    if beside:
        # Pieces of one answer in files of their own: put together as the guest gives it.
        quote = found["quote"].strip()
        text = quote.decode() if _HEX.fullmatch(quote) else found["quote"].hex()
        answer: dict[str, str] = {name: raw.decode() for name, raw in beside.items()}
        found["quote"] = json.dumps({**answer, "quote": text}).encode()
    return found


def _answer(case: dict[str, Any], files: Files) -> Verdict:
    evidence = FORMAT.read(Capture(documents=_documents(files)))
    (attester,) = evidence.attesters
    if attester.tdx is None:
        raise Unsupported("no TDX quote")
    quote = parse_quote(attester.tdx.quote)
    collateral = next((raw for name, raw in files.items() if "collateral" in name), None)
    status = None
    if collateral is not None:
        try:
            status = _verify(attester, collateral, case)
        except Rejected as refused:
            return Verdict("reject", refused.reason, (refused.reason,), str(refused))
    registers = DstackRegisters.of(quote.body)
    verdict = judge_dstack(
        registers=registers,
        runtime_log=attester.runtime_log,
        launch=attester.launch.raw if attester.launch else None,
        vm_config=attester.vm_config,
        policy=_OPEN,
    )
    if not verdict.accepted:
        reasons = tuple(str(finding.reason) for finding in verdict.failures)
        return Verdict("reject", reasons[0], reasons, str(verdict.failures[0]))
    facts = answer_facts(attester, quote, verdict.facts, files)
    if status is not None:
        facts["dcap_status"] = status
    return Verdict("accept", differences=differences(case.get("expected"), facts), claims=facts)


def _verify(attester: Attester, collateral: bytes, case: dict[str, Any]) -> str:
    # Another status is accepted where the case says that it is the one to be read.
    stated = (case.get("expected") or {}).get("dcap_status")
    statuses = {TcbStatus.UP_TO_DATE, *(found for found in TcbStatus if found == stated)}
    if attester.tdx is None:
        raise Unsupported("no TDX quote")
    quote = attester.tdx.quote
    result = appraise_tdx(
        quote,
        collateral,
        roots=(INTEL_TDX_ANCHOR,),
        policy=TdxPolicy(
            accepted_status=frozenset(statuses),
            mr_td=_ANY,
            rtmr0=_ANY,
            rtmr1=_ANY,
            rtmr2=_ANY,
            rtmr3=_ANY,
            mr_seam=_ANY,
            mr_config_id=_ANY,
            platforms=_ANY,
            platform_flags=frozenset(PlatformFlag),
            min_evaluation=0,
            min_root_crl_issued=_EPOCH,
            min_pck_crl_issued=_EPOCH,
            max_collateral_age=_LONG,
        ),
        report_data=attester.binding.expected or parse_quote(quote).body.report_data,
        now=datetime.fromtimestamp(int(case["verification_time_unix"]), UTC),
    )
    return str(result.claims.tcb_status)


def _boot_record(case: dict[str, Any], files: Files) -> Verdict:
    """Judge a boot record: refused as evidence of a machine and as evidence of devices."""
    raw = _only(files)
    facts = {"sha256": hashlib.sha256(raw).hexdigest(), "top_level_keys": sorted(json.loads(raw))}
    for documents in ({"quote": raw}, {"gpu": raw, "quote": b"\x04\x00"}):
        try:
            FORMAT.read(Capture(documents=documents))
        except FormatError:
            continue
        return Verdict("accept", detail="a boot record was read as evidence")
    return Verdict(
        "reject", Reason.SERVICE_FORMAT, differences=differences(case.get("expected"), facts)
    )


def _ccel(case: dict[str, Any], files: Files) -> Verdict:
    raw = _only(files)
    events = parse_ccel(raw)
    registers = replay_ccel(events)
    used = sorted({event.register for event in events if event.register and event.extended})
    (size,) = struct.unpack_from("<I", raw, 28)
    (count,) = struct.unpack_from("<I", raw, 56)
    algorithms = [struct.unpack_from("<HH", raw, 60 + 4 * index) for index in range(count)]
    # Of each record: register, type, number of digests, digests, size of the data, data.
    record = 16 + sum(2 + length for _, length in algorithms)
    facts = {
        "spec_id": raw[32:47].decode("ascii"),
        "algorithms": [[hex(number), length] for number, length in algorithms],
        "events_after_header": len(events),
        "no_action_events": sum(not event.extended for event in events),
        "log_end_offset": 32 + size + sum(record + len(event.data) for event in events),
        "replayed_by_ccel_index": {str(index): registers[index - 1].hex() for index in used},
    }
    return Verdict("accept", differences=differences(case.get("expected"), facts), claims=facts)


def _equal(wrong: list[str]) -> Verdict:
    if wrong:
        return Verdict("reject", Reason.DIGEST_MISMATCH, detail="; ".join(wrong))
    return Verdict("accept")


def _hkdf(salt: bytes, secret: bytes, info: bytes) -> bytes:
    """Return the first 32 bytes (RFC 5869): one round."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def _public_key(algorithm: str, secret: bytes) -> bytes:
    if algorithm == "ed25519":
        return Ed25519Signer(secret).public_key
    return compress_point(derive_secp256k1_public_key(secret))


def _keys(_case: dict[str, Any], files: Files) -> Verdict:
    value = json.loads(_only(files))
    root = bytes.fromhex(value["app_root_key"])
    wrong: list[str] = []
    claims: dict[tuple[str, str], bytes] = {}
    for item in value["vectors"]:
        domain, algorithm = bytes.fromhex(item["domain_hex"]), item["algorithm"]
        parts = (b"dstack-guest-v1-key", algorithm.encode(), domain)
        info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        secret = _hkdf(value["salt"].encode(), root, info)
        public = _public_key(algorithm, secret)
        claim = key_claim(algorithm=algorithm, domain=domain, public_key=public)
        claims[domain.decode("latin-1"), algorithm] = claim
        if [secret.hex(), public.hex(), claim.hex()] != [
            item[name] for name in ("key", "public_key", "claim")
        ]:
            wrong.append(f"{algorithm} key of {domain!r}")
    link = value["link0"]
    signer = recover_signer(
        claims[link["domain"], link["algorithm"]], bytes.fromhex(link["signature"])
    )
    if signer != _public_key("secp256k1", root):
        wrong.append("link0")
    wrong += [
        item["path"]
        for item in value.get("v0", ())
        if _hkdf(b"RATLS", root, item["path"].encode()).hex() != item["key"]
    ]
    return _equal(wrong)


def _legacy_signature(_case: dict[str, Any], files: Files) -> Verdict:
    value = json.loads(_only(files))
    app_id, public = bytes.fromhex(value["app_id"]), bytes.fromhex(value["public_key"])
    message = b"dstack-env-encrypt-pubkey:" + app_id + public
    signer = recover_signer(message, bytes.fromhex(value["signature"])).hex()
    stated = value["signer_compressed"]
    wrong = () if signer == stated else (f"signer is {signer}, not {stated}",)
    # Without a time anybody can show it again: no client of ours accepts it.
    return Verdict("reject", Reason.EVIDENCE_STALE, differences=wrong)


def _digests(_case: dict[str, Any], files: Files) -> Verdict:
    wrong: list[str] = []
    for item in json.loads(_only(files))["cases"]:
        event = RuntimeEvent(item["name"], bytes.fromhex(item["payload"]))
        have = (event.digest(1), event.digest(2), event.preimage())
        stated = (item["v1_digest"], item["v2_digest"], item["v2_preimage"])
        if tuple(part.hex() for part in have) != stated:
            wrong.append(item["name"])
    return _equal(wrong)


def _rules(_case: dict[str, Any], files: Files) -> Verdict:
    wrong: list[str] = []
    for item in json.loads(_only(files))["cases"]:
        log = parse_json(
            json.dumps(item["event_log_rtmr3"]).encode(), what="log", reason=Reason.LOG_FORMAT
        )
        quoted = bytes.fromhex(item["rtmr3"])
        zero = bytes(48)
        verdict = judge_dstack(
            registers=DstackRegisters(
                mr_td=zero,
                rtmr=(zero, zero, zero, quoted),
                mr_config_id=zero,
                mr_owner=zero,
                mr_owner_config=zero,
            ),
            runtime_log=log,
            launch=None,
            vm_config=None,
            policy=_OPEN,
        )
        if verdict.accepted != (item["expect"] == "accept"):
            wrong.append(item["id"])
        naive = zero
        for entry in item["event_log_rtmr3"]:
            if entry["imr"] == 3:
                naive = extend_register(naive, bytes.fromhex(entry["digest"]))
        if (naive == quoted) != item.get("naive_replay_matches", naive == quoted):
            wrong.append(f"{item['id']} (naive replay)")
    return _equal(wrong)


def _compose(_case: dict[str, Any], files: Files) -> Verdict:
    value = json.loads(_only(files))
    hashes = {
        item["id"]: hashlib.sha256(b64decode(item["bytes_b64"])).digest() for item in value["cases"]
    }
    wrong = [item["id"] for item in value["cases"] if hashes[item["id"]].hex() != item["sha256"]]
    if (named := value.get("mrconfigid_v1_for")) is not None:
        if mrconfigid_form1(hashes[named]).hex() != value["mrconfigid_v1"]:
            wrong.append("mrconfigid_v1")
        if hashes[named][:20].hex() != value.get("app_id_default", hashes[named][:20].hex()):
            wrong.append("app_id_default")
    if (third := value.get("mrconfigid_v3")) is not None:
        register = mrconfigid_form3(third["document"].encode()).hex()
        if register != third["mrconfigid"]:
            wrong.append("mrconfigid_v3")
    return _equal(wrong)


_KINDS: Final[dict[str, Callable[[dict[str, Any], Files], Verdict]]] = {
    "quote": _answer,
    "VersionedAttestation": _answer,
    "boot-time GPU record": _boot_record,
    "CCEL": _ccel,
    "key derivation": _keys,
    "KMS signature": _legacy_signature,
    "runtime event digests": _digests,
    "RTMR3 log rules": _rules,
    "compose hash": _compose,
}
