"""Steps 4 to 9 of docs/protocols/nras.md: what the tokens say, after (and never instead of) 1 to 3.

Claims are read from payloads whose signatures steps 3a and 3b judge; these steps run either way,
so that a refusal names everything that is wrong.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from confide.appraisal.nras_state import LEEWAY_SECONDS, Claims, NrasState
from confide.appraisal.steps import Refused, Step, established
from confide.appraisal.tdx_policy import UnsafeAny
from confide.errors import Reason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from confide.wire.json import JsonValue

__all__ = ["CLAIM_STEPS", "POLICY_STEP_IDS", "VERSION", "WARNING", "device_kind", "version_claims"]

_DOC: Final = "docs/protocols/nras.md"
_ERROR_DETAILS: Final = "x-nvidia-error-details"
WARNING: Final = "x-nvidia-attestation-warning"
VERSION: Final = "x-nvidia-ver"
# From: docs/protocols/nras.md 7b.
_SUBJECT: Final = "NVIDIA-PLATFORM-ATTESTATION"
_VERSIONS: Final = ("2.0", "3.0")
_HEX_32: Final = re.compile(r"[0-9A-Fa-f]{64}\Z")
_UEID: Final = re.compile(r"[0-9]{1,64}\Z")
# From: docs/protocols/nras.md 7c, the claims that a good verdict rests on.
_GOOD: Final = (
    "arch-check",
    "attestation-report-parsed",
    "attestation-report-nonce-match",
    "attestation-report-signature-verified",
)
_MISMATCHES: Final = "x-nvidia-mismatch-measurement-records"


def device_kind(name: str) -> str:
    """Return `gpu` or `switch` for the name of a submodule."""
    return name.partition("-")[0].lower()


def version_claims(name: str) -> tuple[str, str]:
    """Return the names of the claims of driver and VBIOS version; no driver for a switch."""
    if device_kind(name) == "switch":
        return "", "x-nvidia-switch-bios-version"
    return "x-nvidia-gpu-driver-version", "x-nvidia-gpu-vbios-version"


def _require_payloads(state: NrasState) -> str:
    """4a: every payload is an object."""
    state.overall_claims = established(state.overall).payload(
        what="overall payload", reason=Reason.TOKEN_MALFORMED
    )
    for name, token in state.tokens.items():
        state.payloads[name] = token.payload(
            what=f"payload of {name}", reason=Reason.TOKEN_MALFORMED
        )
    return f"{1 + len(state.payloads)} payload(s)"


def _all_claims(state: NrasState) -> Iterator[tuple[str, Claims]]:
    yield "the overall token", established(state.overall_claims)
    for name, claims in state.payloads.items():
        yield f"the token of {name}", claims


def _require_issuer(state: NrasState) -> None:
    """4b: the service the caller named."""
    for what, claims in _all_claims(state):
        if claims.get("iss") != state.issuer:
            raise Refused(Reason.TOKEN_ISSUER, f"{what} names another issuer")


def _require_submodules(state: NrasState) -> str:
    """5a: the devices vouched for are the devices presented."""
    submodules = established(state.overall_claims).get("submods")
    names = set(submodules) if isinstance(submodules, dict) else set[str]()
    if not names or names != set(state.tokens):
        raise Refused(
            Reason.TOKEN_SUBMODS_MISMATCH,
            f"{len(names)} submodule(s) vouched for, {len(state.tokens)} token(s) presented",
        )
    return f"{len(names)} submodule(s)"


def _require_digests(state: NrasState) -> None:
    """5b: each device token is the one that was vouched for."""
    submodules = established(state.overall_claims).get("submods")
    entries = submodules if isinstance(submodules, dict) else {}
    for name, token in state.tokens.items():
        match entries.get(name):
            case ["DIGEST", ["SHA-256", str(digest)]] if _HEX_32.match(digest):
                expected = bytes.fromhex(digest)
            case _:
                raise Refused(Reason.TOKEN_DIGEST_MISMATCH, f"{name} has no SHA-256 digest")
        if hashlib.sha256(token.text.encode("ascii")).digest() != expected:
            raise Refused(Reason.TOKEN_DIGEST_MISMATCH, f"the token of {name} is another one")


def _holds(value: JsonValue, member: str) -> bool:
    # Depth is bounded by the parser.
    if isinstance(value, dict):
        return member in value or any(_holds(item, member) for item in value.values())
    return isinstance(value, list) and any(_holds(item, member) for item in value)


def _require_no_error(state: NrasState) -> None:
    """6a: the service appraised, and did not merely answer."""
    for what, claims in _all_claims(state):
        if _holds(claims, _ERROR_DETAILS):
            raise Refused(Reason.TOKEN_ERROR_DETAILS, f"{what} reports an error of its input")


def _require_nonce(state: NrasState) -> None:
    """6b: an answer to this question."""
    for what, claims in _all_claims(state):
        nonce = claims.get("eat_nonce")
        if not isinstance(nonce, str) or not _HEX_32.match(nonce):
            raise Refused(Reason.TOKEN_NONCE_MISMATCH, f"{what} has no nonce of 32 bytes")
        if not hmac.compare_digest(bytes.fromhex(nonce), state.expected_nonce):
            raise Refused(Reason.TOKEN_NONCE_MISMATCH, f"{what} answers another nonce")


def _require_verdict(state: NrasState) -> None:
    """7a: the verdict is good."""
    if established(state.overall_claims).get("x-nvidia-overall-att-result") is not True:
        raise Refused(Reason.TOKEN_OVERALL_FALSE, "the service did not accept the devices")


def _require_results(state: NrasState) -> None:
    """7b: and so is that over each device."""
    overall = established(state.overall_claims)
    if overall.get("sub") != _SUBJECT:
        raise Refused(Reason.TOKEN_CLAIMS, "the overall token is about another subject")
    if overall.get(VERSION) not in _VERSIONS:
        raise Refused(Reason.TOKEN_CLAIMS, "the claims are of a version that is not known")
    for name, claims in state.payloads.items():
        if claims.get("measres") != "success":
            raise Refused(Reason.TOKEN_CLAIMS, f"{name}: measurements were not found good")
        if claims.get("secboot") is not True:
            raise Refused(Reason.TOKEN_CLAIMS, f"{name}: no secure boot")
        if claims.get("dbgstat") != "disabled":
            raise Refused(Reason.TOKEN_CLAIMS, f"{name}: debugging is not off")


def _require_details(state: NrasState) -> None:
    """7c: the details do not contradict the verdict."""
    granular = established(state.overall_claims).get(VERSION) == "3.0"
    for name, claims in state.payloads.items():
        prefix = f"x-nvidia-{device_kind(name)}-"
        for good in _GOOD:
            if claims.get(prefix + good) is not True:
                raise Refused(Reason.TOKEN_CLAIMS, f"{name}: {good} is not true")
        if granular and f"{prefix}attestation-report-cert-chain" not in claims:
            raise Refused(Reason.TOKEN_CLAIMS, f"{name}: no status of the device's chain")
        if claims.get(_MISMATCHES):
            raise Refused(Reason.TOKEN_CLAIMS, f"{name}: measurements differ")
        for claim, value in claims.items():
            _require_detail(name, claim, value)


def _require_detail(name: str, claim: str, value: JsonValue) -> None:
    if not claim.startswith(("x-nvidia-gpu-", "x-nvidia-switch-")):
        return
    # Names of claims come from the token: a finding does not repeat them.
    if value is False:
        raise Refused(Reason.TOKEN_CLAIMS, f"{name}: a check of the service failed")
    if claim.endswith("-cert-chain"):
        status = value if isinstance(value, dict) else {}
        if status.get("x-nvidia-cert-status") != "valid":
            raise Refused(Reason.TOKEN_CLAIMS, f"{name}: a certificate chain is not valid")
        if status.get("x-nvidia-cert-ocsp-status") != "good":
            raise Refused(Reason.TOKEN_CLAIMS, f"{name}: a certificate is not in good standing")


def _instant(claims: Claims, member: str, what: str) -> datetime:
    value = claims.get(member)
    # 253402300799 is the last second of year 9999.
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 253402300799:
        raise Refused(Reason.TOKEN_EXPIRED, f"{what} does not say when it holds")
    return datetime.fromtimestamp(value, UTC)


def _require_time(state: NrasState) -> None:
    """8: now is within every period."""
    leeway = timedelta(seconds=LEEWAY_SECONDS)
    for what, claims in _all_claims(state):
        begin, end = _instant(claims, "nbf", what), _instant(claims, "exp", what)
        if state.now + leeway < begin:
            raise Refused(Reason.TOKEN_EXPIRED, f"{what} is not valid yet")
        if state.now - leeway > end:
            raise Refused(Reason.TOKEN_EXPIRED, f"{what} has expired")
        state.expiries.append(end)
    for key in state.keys.values():
        for certificate in key.certificates:
            if not certificate.not_before <= state.now <= certificate.not_after:
                raise Refused(
                    Reason.TOKEN_EXPIRED, "a certificate of the service's key is out of its period"
                )
            state.expiries.append(certificate.not_after)


def _require_distinct(state: NrasState) -> str:
    """9a: no device stands for two."""
    seen: set[str] = set()
    for name, claims in state.payloads.items():
        ueid = claims.get("ueid")
        if not isinstance(ueid, str) or not _UEID.match(ueid):
            raise Refused(Reason.TOKEN_CLAIMS, f"{name}: no ueid")
        if ueid in seen:
            raise Refused(Reason.DUPLICATE_DEVICE, "one device appears twice")
        seen.add(ueid)
    return f"{len(seen)} device(s)"


def _text(claims: Claims, member: str) -> str:
    value = claims.get(member, "") if member else ""
    return value if isinstance(value, str) else ""


def _require_reports(state: NrasState) -> str:
    """9b: what the service saw is what the reports say."""
    if state.reports is None:
        return "no reports at hand to compare with"
    said: dict[tuple[str, str], tuple[str, str]] = {}
    for name, claims in state.payloads.items():
        driver, vbios = version_claims(name)
        key = device_kind(name), _text(claims, "ueid")
        said[key] = _text(claims, driver).upper(), _text(claims, vbios).upper()
    shown = {
        (report.kind, report.ueid): (report.driver_version.upper(), report.vbios_version.upper())
        for report in state.reports
    }
    if len(shown) != len(state.reports) or set(said) != set(shown):
        raise Refused(Reason.TOKEN_CLAIMS, "the reports are of other devices")
    if said != shown:
        raise Refused(Reason.TOKEN_CLAIMS, "a report shows another driver or VBIOS")
    return f"{len(shown)} report(s) agree"


def _require_count(state: NrasState) -> str:
    """9c: as many devices as the policy asks for."""
    count, wanted = len(state.payloads), state.policy.device_count
    if isinstance(wanted, UnsafeAny):
        return f"{count} device(s); the policy takes any number"
    if count != wanted:
        reason = Reason.GPU_MISSING if count < wanted else Reason.TOPOLOGY_COUNT
        raise Refused(reason, f"{count} device(s), the policy asks for {wanted}")
    return f"{count} device(s)"


def _require_versions(state: NrasState) -> None:
    """9d: versions that the policy accepts."""
    rules = (("driver", state.policy.driver), ("VBIOS", state.policy.vbios))
    for name, claims in state.payloads.items():
        for (what, rule), claim in zip(rules, version_claims(name), strict=True):
            if isinstance(rule, UnsafeAny) or not claim:
                continue
            if not rule.accepts(_text(claims, claim)):
                raise Refused(
                    Reason.VERSION_NOT_ALLOWED, f"{name}: the policy does not accept this {what}"
                )


def _require_no_warning(state: NrasState) -> str:
    """9e: warnings are accepted by the policy alone."""
    warned = [name for name, claims in state.payloads.items() if claims.get(WARNING) is not None]
    if established(state.overall_claims).get(WARNING) is not None:
        warned.append("overall")
    if warned and not state.policy.accept_warnings:
        raise Refused(Reason.TOKEN_CLAIMS, f"the service warns about {', '.join(warned)}")
    return f"{len(warned)} warning(s), accepted by the policy" if warned else ""


_READ: Final = ("nras/4a",)
CLAIM_STEPS: tuple[Step[NrasState], ...] = (
    Step("nras/4a", f"{_DOC}#4", _require_payloads, needs=("nras/1",)),
    Step("nras/4b", f"{_DOC}#4", _require_issuer, needs=_READ),
    Step("nras/5a", f"{_DOC}#5", _require_submodules, needs=_READ),
    Step("nras/5b", f"{_DOC}#5", _require_digests, needs=("nras/4a", "nras/5a")),
    Step("nras/6a", f"{_DOC}#6", _require_no_error, needs=_READ),
    Step("nras/6b", f"{_DOC}#6", _require_nonce, needs=_READ),
    Step("nras/7a", f"{_DOC}#7", _require_verdict, needs=_READ),
    Step("nras/7b", f"{_DOC}#7", _require_results, needs=_READ),
    Step("nras/7c", f"{_DOC}#7", _require_details, needs=_READ),
    Step("nras/8", f"{_DOC}#8", _require_time, needs=_READ),
    Step("nras/9a", f"{_DOC}#9", _require_distinct, needs=_READ),
    Step("nras/9b", f"{_DOC}#9", _require_reports, needs=_READ),
    Step("nras/9c", f"{_DOC}#9", _require_count, needs=_READ),
    Step("nras/9d", f"{_DOC}#9", _require_versions, needs=_READ),
    Step("nras/9e", f"{_DOC}#9", _require_no_warning, needs=_READ),
)
# Where only these fail, the token is authentic.
POLICY_STEP_IDS: Final = frozenset({"nras/9c", "nras/9d", "nras/9e"})
