"""Cases of kind `token`: a detached EAT of NVIDIA's remote service, to a verdict.

Members, beside those of every case: `files.token`; `files.jwks` or `files.keys` (or `jwks` of the
case), the key set as fetched with the token (absent: there is none); `nonce` (hex), `now`,
`issuer`; `claims_only`, which runs only the checks after the signature; `drop_devices`,
`append_to_device` and `patch`, `patch_text`, edits before the check.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from confide.appraisal.nras import (
    NONCE_BYTES,
    NRAS_ISSUER,
    NrasPolicy,
    appraise_nras,
    find_in_claims,
)
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import FormatError, Reason, Rejected
from confide.rats import Finding, Status
from conformance.verdict import Verdict

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["judge"]

# The verdict on the token alone: which devices and versions somebody wants is no part of a case.
_POLICY = NrasPolicy(
    device_count=UnsafeAny(), driver=UnsafeAny(), vbios=UnsafeAny(), accept_warnings=True
)


def judge(case: dict[str, Any], folder: Path) -> Verdict:
    """Judge one case whose files are relative to `folder`."""
    files = case["files"]
    token = _edited((folder / files["token"]).read_bytes(), case)
    keys = files.get("jwks", files.get("keys", case.get("jwks")))
    nonce = bytes.fromhex(case["nonce"])
    if len(nonce) != NONCE_BYTES:
        # No token answers such a question; whoever asks it is told so by the library, too.
        return Verdict("reject", Reason.TOKEN_NONCE_MISMATCH, (Reason.TOKEN_NONCE_MISMATCH,))
    inputs: dict[str, Any] = {
        "expected_nonce": nonce,
        "issuer": case.get("issuer", NRAS_ISSUER),
        "policy": _POLICY,
        "now": datetime.fromisoformat(case["now"]),
    }
    try:
        if case.get("claims_only", False):
            return _of(find_in_claims(token, **inputs))
        jwks = (folder / keys).read_bytes() if keys is not None else None
        return _of(appraise_nras(token, jwks=jwks, **inputs).findings)
    except Rejected as refusal:
        return _of(refusal.findings)
    except FormatError as error:
        return Verdict("malformed", error.reason, (error.reason,), error.what)


def _of(findings: tuple[Finding, ...]) -> Verdict:
    failed = [finding for finding in findings if finding.failed]
    reasons = tuple(str(finding.reason) for finding in failed)
    if failed:
        return Verdict("reject", reasons[0], reasons, str(failed[0]))
    if any(finding.status is not Status.PASS for finding in findings):
        raise RuntimeError("a step did not run although none failed")
    return Verdict("accept")


def _edited(raw: bytes, case: dict[str, Any]) -> bytes:
    for edit in case.get("patch_text", []):
        old, new = edit["find"].encode(), edit["replace"].encode()
        raw = raw.replace(old, new, edit.get("count", -1))
    for edit in case.get("patch", []):
        raw = _patched(raw, edit)
    dropped, appended = case.get("drop_devices", []), case.get("append_to_device")
    if not dropped and appended is None:
        return raw
    overall, devices = json.loads(raw)
    for name in dropped:
        del devices[name]
    for edit in appended if isinstance(appended, list) else [appended] if appended else []:
        devices[edit["name"]] += edit["text"]
    return json.dumps([overall, devices]).encode()


def _patched(raw: bytes, edit: dict[str, Any]) -> bytes:
    match edit["op"]:
        case "xor":
            at, mask = edit["offset"], bytes.fromhex(edit["hex"])
            piece = bytes(a ^ b for a, b in zip(raw[at : at + len(mask)], mask, strict=True))
            return raw[:at] + piece + raw[at + len(mask) :]
        case "append":
            return raw + bytes.fromhex(edit["hex"])
        case "truncate":
            length: int = edit["length"]
            return raw[:length]
        case other:
            raise ValueError(f"unknown patch operation {other}")
