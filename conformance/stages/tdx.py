"""Stage `tdx`: one quote, its collateral, a root, a time and a policy, through `appraise_tdx`.

Format: conformance/CONTRACT.md, "tdx". Names under an anchor follow the case (`anchor`), never the
evidence. What the case does not restrict is accepted here and stays visible as a relaxation.
"""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from confide.appraisal.tdx import appraise_tdx
from confide.appraisal.tdx_policy import (
    PlatformFlag,
    TdxPolicy,
    TrailingBytes,
    UnsafeAny,
)
from confide.errors import FormatError, PolicyRejected, Reason, Rejected
from confide.trust.anchors import TdxAnchor, TdxNames
from confide.trust.intel import INTEL_TDX_ANCHOR
from confide.wire.collateral import TcbStatus
from confide.wire.tdx import parse_quote
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from confide.appraisal.tdx_types import TdxClaims, TdxResult

__all__ = ["judge"]

_REPORT_DATA_BYTES: Final = 64
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NAMES: Final = {
    "intel": INTEL_TDX_ANCHOR.names,
    "simulated": TdxNames(
        root="Simulated SGX Root CA",
        pck_authorities=("Simulated SGX PCK Platform CA", "Simulated SGX PCK Processor CA"),
        pck_leaf="Simulated SGX PCK Certificate",
        tcb_signer="Simulated SGX TCB Signing",
    ),
}
# The default policy of the vectors: everything the index does not restrict.
_ANY: Final = UnsafeAny()
_OPEN: Final = TdxPolicy(
    accepted_status=frozenset({TcbStatus.UP_TO_DATE}),
    mr_td=_ANY,
    rtmr0=_ANY,
    rtmr1=_ANY,
    rtmr2=_ANY,
    rtmr3=_ANY,
    mr_seam=_ANY,
    mr_config_id=_ANY,
    mr_owner=_ANY,
    mr_owner_config=_ANY,
    platforms=_ANY,
    platform_flags=frozenset(PlatformFlag),
    min_evaluation=0,
    min_root_crl_issued=_EPOCH,
    min_pck_crl_issued=_EPOCH,
    max_collateral_age=timedelta(days=36500),
    unsafe_simulated=True,
)
_TRAILING: Final = {
    "zero-only": TrailingBytes.ZERO_ONLY,
    "none": TrailingBytes.NONE,
    "any": TrailingBytes.UNSAFE_ANY,
}
_REGISTERS: Final = {
    "mrtd": "mr_td",
    "rtmr0": "rtmr0",
    "rtmr1": "rtmr1",
    "rtmr2": "rtmr2",
    "rtmr3": "rtmr3",
    "mrseam": "mr_seam",
    "mrconfigid": "mr_config_id",
    "mrowner": "mr_owner",
    "mrownerconfig": "mr_owner_config",
    "mrservicetd": "service_td",
    "servicetd": "service_td",
    "platforms": "platforms",
    "ppid": "platforms",
    "platforminstance": "platforms",
    "platforminstanceid": "platforms",
    "platform": "platforms",
    "instance": "platforms",
}
_FLAGS: Final = {
    "dynamic_platform": PlatformFlag.DYNAMIC,
    "cached_keys": PlatformFlag.CACHED_KEYS,
    "smt": PlatformFlag.SMT,
    "smt_enabled": PlatformFlag.SMT,
}


def judge(case: dict[str, Any], folder: Path) -> Verdict:
    """Judge one case of an index in `folder`."""
    defaults = case.get("_index", {}).get("default_policy", {})
    wanted = {**defaults, **case.get("policy", {})}
    verdict = _once(case, folder, wanted)
    relaxed = case.get("relaxed")
    if relaxed is None:
        return verdict
    return replace(
        verdict, differences=verdict.differences + _relaxed(case, folder, wanted, relaxed)
    )


def _relaxed(
    case: dict[str, Any], folder: Path, wanted: dict[str, Any], relaxed: dict[str, Any]
) -> tuple[str, ...]:
    """Return how the same evidence under the relaxed policy differs from what the case states."""
    stated = {
        "tcb_status": relaxed.get("tcb_status"),
        "claims": {name: relaxed[name] for name in ("advisories",) if name in relaxed},
    }
    again = {**case, **stated, "outcome": relaxed.get("outcome", "accept")}
    found = _once(again, folder, {**wanted, **relaxed.get("policy", {})})
    if found.outcome != again["outcome"]:
        return (f"relaxed: {found.outcome}: {found.reason}: {found.detail}",)
    return tuple(f"relaxed: {difference}" for difference in found.differences)


def _once(case: dict[str, Any], folder: Path, wanted: dict[str, Any]) -> Verdict:
    policy, expected = _policy(wanted)
    quote = (folder / case["quote"]).read_bytes()
    # 31 wants all 64 bytes: a shorter or longer value is the report data of no quote.
    impossible = expected is not None and len(expected) != _REPORT_DATA_BYTES
    if impossible:
        expected = None
    try:
        result = appraise_tdx(
            quote,
            (folder / case["collateral"]).read_bytes(),
            roots=(_anchor(case, folder),),
            policy=policy,
            report_data=_own_report_data(quote, policy) if expected is None else expected,
            now=datetime.fromtimestamp(case["now"], UTC),
        )
    except FormatError as error:
        return Verdict("malformed", error.reason, _reasons(error), error.what)
    except Rejected as refused:
        return _refused(case, refused)
    if impossible:
        reason = str(Reason.REPORT_DATA_MISMATCH)
        return Verdict("reject", reason, (reason,), "expected report data of another length")
    return _accepted(case, result)


def _reasons(error: FormatError) -> tuple[str, ...]:
    # A part that is longer than what holds it fails two rules: a size that does not fit (3), and a
    # read past an end (1).
    short = error.reason is Reason.QUOTE_FORMAT and error.what.endswith(" left")
    return (error.reason, Reason.QUOTE_TRUNCATED) if short else (error.reason,)


def _anchor(case: dict[str, Any], folder: Path) -> TdxAnchor:
    kind = case["anchor"]
    if kind not in _NAMES:
        raise Unclear(f"anchor {kind}")
    return TdxAnchor(
        (folder / case["root"]).read_bytes(), _NAMES[kind], simulated=kind == "simulated"
    )


def _own_report_data(quote: bytes, policy: TdxPolicy) -> bytes:
    # A case that says nothing about report data expects what the quote says.
    unsafe_trailing = policy.trailing_bytes is TrailingBytes.UNSAFE_ANY
    try:
        return parse_quote(quote, unsafe_trailing=unsafe_trailing).body.report_data
    except FormatError:
        return bytes(64)


def _refused(case: dict[str, Any], refused: Rejected) -> Verdict:
    reasons = tuple(str(found.reason) for found in refused.failures)
    detail = f"{refused.failures[0].step}: {refused.failures[0].detail}"
    differences: list[str] = []
    merged = [found.detail for found in refused.findings if found.step == "tdx/26"]
    stated = case.get("tcb_status")
    # What stands behind a level that was not authenticated is nobody's status.
    authentic = isinstance(refused, PolicyRejected) or reasons == (Reason.REPORT_DATA_MISMATCH,)
    if stated is not None and authentic and merged != [stated]:
        differences.append(f"tcb_status is {merged}, not {stated}")
    return Verdict("reject", reasons[0], reasons, detail, tuple(differences))


def _accepted(case: dict[str, Any], result: TdxResult) -> Verdict:
    have, differences = _shown(result.claims), list[str]()
    stated = dict(case.get("claims") or {})
    stated |= {name: case[name] for name in ("advisories",) if case.get(name) is not None}
    if case.get("tcb_status") is not None:
        stated["tcb_status"] = case["tcb_status"]
    stated.setdefault("simulated", case["anchor"] == "simulated")
    for name, value in stated.items():
        plain = _plain(name)
        if plain not in have:
            differences.append(f"no claim is called {name}")
        elif have[plain] != value:
            differences.append(f"{name} is {have[plain]}, not {value}")
    return Verdict("accept", detail=result.claims.tcb_status, differences=tuple(differences),
                   claims=have)  # fmt: skip


def _plain(name: str) -> str:
    """Return a claim's name without the marks in which writers differ."""
    return name.replace("_", "").replace("-", "").lower()


def _shown(claims: TdxClaims) -> dict[str, Any]:
    have = {_plain(item.name): _json(getattr(claims, item.name)) for item in fields(claims)}
    have["digests"] = {
        item.name: getattr(claims.digests, item.name) for item in fields(claims.digests)
    }
    have |= {f"rtmr{index}": value.hex() for index, value in enumerate(claims.rtmr)}
    have["trailingbytes"] = have["padding"]
    have["tcbevaluationdatanumber"] = min(claims.tcb_evaluation, claims.qe_evaluation)
    have["status"] = have["tcbstatus"]
    return have


def _json(value: object) -> object:
    match value:
        case bytes():
            return value.hex()
        case tuple():
            return [_json(item) for item in value]
        case datetime():
            return int(value.timestamp())
        case TcbStatus():
            return str(value)
    return value


def _mask(value: object) -> int:
    return value if isinstance(value, int) else int(str(value), 16)


def _time(value: object) -> datetime:
    return datetime.fromtimestamp(int(str(value)), UTC)


def _bytes(value: object) -> frozenset[bytes]:
    return frozenset(bytes.fromhex(item) for item in ([value] if isinstance(value, str) else value))  # type: ignore[attr-defined]


def _statuses(policy: TdxPolicy, value: Any) -> TdxPolicy:
    # "Revoked never is": a vector may list it, no policy can.
    accepted = frozenset(map(TcbStatus, value)) - {TcbStatus.REVOKED}
    return replace(policy, accepted_status=accepted)


def _attributes(policy: TdxPolicy, value: Any) -> TdxPolicy:
    return replace(policy, unsafe_attributes_mask=_mask(value))


def _xfam(member: str) -> Callable[[TdxPolicy, Any], TdxPolicy]:
    return lambda policy, value: replace(policy, unsafe_xfam=True, **{member: _mask(value)})  # type: ignore[arg-type]


def _trailing(policy: TdxPolicy, value: Any) -> TdxPolicy:
    if value not in _TRAILING:
        raise Unclear(f"trailing_bytes {value}")
    return replace(policy, trailing_bytes=_TRAILING[value])


def _flag(flag: PlatformFlag) -> Callable[[TdxPolicy, Any], TdxPolicy]:
    def change(policy: TdxPolicy, value: Any) -> TdxPolicy:
        if value in {"allowed", "allow", True}:
            return replace(policy, platform_flags=policy.platform_flags | {flag})
        if value in {"rejected", "reject", "refused", "forbidden", "denied", "disallowed", False}:
            return replace(policy, platform_flags=policy.platform_flags - {flag})
        raise Unclear(f"{flag} {value}")

    return change


_CHANGES: Final[dict[str, Callable[[TdxPolicy, Any], TdxPolicy]]] = {
    "accept_status": _statuses,
    "allow_debug": lambda policy, value: replace(policy, unsafe_debug=value),
    "require_sept_ve_disable": lambda policy, value: replace(
        policy, unsafe_sept_ve_clear=not value
    ),
    "allowed_td_attributes": _attributes,
    "xfam_required": _xfam("xfam_required"),
    "xfam_allowed": _xfam("xfam_allowed"),
    "allow_service_td": lambda policy, value: replace(policy, service_td=_ANY) if value else policy,
    "trailing_bytes": _trailing,
    "min_tcb_evaluation_data_number": lambda policy, value: replace(policy, min_evaluation=value),
    "min_root_crl_this_update": lambda policy, value: replace(
        policy, min_root_crl_issued=_time(value)
    ),
    "min_pck_crl_this_update": lambda policy, value: replace(
        policy, min_pck_crl_issued=_time(value)
    ),
    "max_collateral_age": lambda policy, value: replace(
        policy, max_collateral_age=timedelta(seconds=value)
    ),
    "allow_simulated": lambda policy, value: replace(policy, unsafe_simulated=value),
    **{name: _flag(flag) for name, flag in _FLAGS.items()},
}


def _policy(wanted: dict[str, Any]) -> tuple[TdxPolicy, bytes | None]:
    """Return the policy that `wanted` describes, and the expected report data where it has any."""
    policy, expected = _OPEN, None
    for name, value in wanted.items():
        if name in {"expected_report_data", "report_data"}:
            expected = None if value is None else bytes.fromhex(value)
        elif name in _CHANGES:
            policy = _CHANGES[name](policy, value)
        else:
            policy = _register(policy, name, value)
    return policy, expected


# Words with which a policy says that a member is a list of what it accepts, or does not.
_MARKS: Final = (
    *("expected", "allowed", "accepted", "accept", "allow", "required", "require"),
    *("values", "allowlist", "list", "blocklist", "blocked", "block", "denylist", "deny", "denied"),
)


def _register(policy: TdxPolicy, name: str, value: Any) -> TdxPolicy:
    plain = _plain(name)
    for mark in _MARKS:
        plain = plain.removeprefix(mark).removesuffix(mark)
    if plain == "rtmr":
        registers = {f"rtmr{index}": _bytes(item) for index, item in enumerate(value) if item}
        return replace(policy, **registers)  # type: ignore[arg-type]
    field = _REGISTERS.get(plain) or _REGISTERS.get(plain.removesuffix("s"))
    if any(mark in _plain(name) for mark in ("block", "deny", "denied")):
        field = "blocked_platforms" if field == "platforms" else None
    if field is None:
        raise Unclear(f"policy member {name}")
    if value is None:
        return policy
    return replace(policy, **{field: _bytes(value)})  # type: ignore[arg-type]
