"""Stage `snp`: one report, its leaf and chain, a time and a policy, through `appraise_snp`.

Format: shared vectors, snp/README.md. The chain in a case is untrusted: the anchors are AMD's, or
where a case says `"anchor": "simulated"` the certificates in its `ark` file (PEM), in the order
Milan, Genoa, Turin of the products it names in `ark_products`. What the case does not restrict is
accepted here and stays visible as a relaxation.
"""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from confide.appraisal.snp import appraise_snp
from confide.appraisal.snp_policy import SnpFloors, SnpPolicy
from confide.appraisal.tdx_policy import UnsafeAny
from confide.crypto.x509 import split_pem_chain
from confide.errors import FormatError, Reason, Rejected
from confide.trust.amd import AMD_ROOTS, AmdAnchor, AmdRoots
from confide.wire.snp import (
    Firmware,
    GuestPolicy,
    PlatformInfo,
    Product,
    SnpTcb,
    parse_report,
)
from conformance.verdict import Unclear, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from confide.appraisal.snp import SnpClaims, SnpResult

__all__ = ["judge"]

_ANY: Final = UnsafeAny()
_NO_FLOOR: Final = SnpTcb(boot_loader=0, tee=0, snp=0, microcode=0)
# From: the index, `tcb_order`; Turin's FMC stands behind the four where a case has five numbers.
_ORDER: Final = ("boot_loader", "tee", "snp", "microcode", "fmc")
_PLAIN: Final = {"bl": "boot_loader", "bootloader": "boot_loader", "ucode": "microcode"}


def judge(case: dict[str, Any], folder: Path) -> Verdict:
    """Judge one case of an index in `folder`."""
    index = case.get("_index", {})
    names = case.get("tcb_order") or index.get("tcb_order") or _ORDER[:4]
    order = tuple(_PLAIN.get(name, name) for name in names)
    wanted = {**index.get("default_policy", {}), **case.get("policy", {})}
    verdict = _once(case, folder, wanted, order)
    relaxed = case.get("relaxed")
    if relaxed is None:
        return verdict
    outcome = relaxed.get("outcome", "accept")
    again = {**case, "claims": relaxed.get("claims")}
    found = _once(again, folder, {**wanted, **relaxed.get("policy", {})}, order)
    differences = [f"relaxed: {difference}" for difference in found.differences]
    if found.outcome != outcome:
        differences.insert(0, f"relaxed: {found.outcome}: {found.reason}: {found.detail}")
    return replace(verdict, differences=(*verdict.differences, *differences))


def _once(
    case: dict[str, Any], folder: Path, wanted: dict[str, Any], order: tuple[str, ...]
) -> Verdict:
    def read(name: str) -> bytes:
        return (folder / str(case[name])).read_bytes()

    policy, expected = _policy(wanted, order)
    report = read("report")
    try:
        result = appraise_snp(
            report,
            leaf_der=read("leaf"),
            chain_pem=read("ask_ark"),
            crl_der=read("crl") if case.get("crl") else None,
            roots=_roots(case, folder),
            policy=policy,
            report_data=_own_report_data(report) if expected is None else expected,
            now=datetime.fromtimestamp(case["now"], UTC),
        )
    except FormatError as error:
        return Verdict("malformed", error.reason, (error.reason,), error.what)
    except Rejected as refused:
        reasons = tuple(str(found.reason) for found in refused.failures)
        first = refused.failures[0]
        return Verdict("reject", reasons[0], reasons, f"{first.step}: {first.detail}")
    return _accepted(case, result, order)


def _roots(case: dict[str, Any], folder: Path) -> AmdRoots:
    kind = case.get("anchor", "amd")
    if kind == "amd":
        return AMD_ROOTS
    if kind != "simulated":
        raise Unclear(f"anchor {kind}")
    pem = (folder / case["ark"]).read_bytes()
    ders = split_pem_chain(pem, max_certificates=3, what="anchors", reason=Reason.CHAIN)
    products = map(Product, case["ark_products"])
    anchors = tuple(AmdAnchor(*found) for found in zip(products, ders, strict=True))
    return AmdRoots(anchors, simulated=True)


def _own_report_data(report: bytes) -> bytes:
    # A case that says nothing about report data expects what the report says.
    try:
        return parse_report(report).report_data
    except FormatError:
        return bytes(64)


def _accepted(case: dict[str, Any], result: SnpResult, order: tuple[str, ...]) -> Verdict:
    have = _shown(result.claims)
    differences: list[str] = []
    for name, value in (case.get("claims") or {}).items():
        plain = _plain(name)
        if plain not in have:
            differences.append(f"no claim is called {name}")
        elif value != (found := _as_asked(plain, value, have[plain], result, order)):
            differences.append(f"{name} is {found}, not {value}")
    detail = f"{result.claims.product} {result.claims.key}"
    return Verdict("accept", detail=detail, differences=tuple(differences), claims=have)


def _as_asked(
    name: str, value: Any, found: object, result: SnpResult, order: tuple[str, ...]
) -> object:
    """Return what was found in the way in which the case writes it: words and levels have two."""
    report, product = result.verified.report, result.claims.product
    word = {"policy": report.policy, "platforminfo": report.platform_info}.get(name)
    if word is not None and isinstance(value, int):
        return word
    if word is not None and isinstance(value, str):
        return value if _number(value) == word else hex(word)
    levels = {
        "reportedtcb": report.reported_tcb,
        "committedtcb": report.committed_tcb,
        "launchtcb": report.launch_tcb,
        "currenttcb": report.current_tcb,
    }
    if name not in levels:
        return found
    tcb = levels[name].components(product)
    if isinstance(value, dict):
        return {part: getattr(tcb, _PLAIN.get(str(part), str(part)), None) for part in value}
    if isinstance(value, str):
        return levels[name].raw.hex()
    names = order if len(value) == len(order) else _ORDER[: len(value)]
    return [getattr(tcb, part) for part in names]


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None


def _plain(name: str) -> str:
    """Return a claim's name without the marks in which writers differ."""
    return name.replace("_", "").replace("-", "").lower()


def _shown(claims: SnpClaims) -> dict[str, Any]:
    have = {_plain(item.name): _json(getattr(claims, item.name)) for item in fields(claims)}
    have["policy"] = have["guestpolicy"]
    return have


def _json(value: object) -> object:
    match value:
        case bytes():
            return value.hex()
        case tuple():
            return [_json(item) for item in value]
        case datetime():
            return int(value.timestamp())
        case SnpTcb():
            # Turin shows five numbers, as a floor for it may have.
            names = _ORDER if value.fmc else _ORDER[:4]
            return [getattr(value, name) for name in names]
        case Firmware() | Product():
            return str(value)
    return value


def _tcb(value: Any, order: tuple[str, ...]) -> SnpTcb:
    if isinstance(value, dict):
        named: dict[str, Any] = {_PLAIN.get(str(k), str(k)): v for k, v in value.items()}
    elif len(value) == len(order):
        named = dict(zip(order, value, strict=True))
    else:
        named = dict(zip(_ORDER, value, strict=len(value) == len(_ORDER)))
    return replace(_NO_FLOOR, **named)


def _digests(value: Any) -> frozenset[bytes]:
    return frozenset(bytes.fromhex(item) for item in ([value] if isinstance(value, str) else value))


# The default policy of the vectors: everything that the index does not restrict.
def _open(products: frozenset[Product], floors: dict[str, SnpTcb]) -> SnpPolicy:
    return SnpPolicy(
        products=products,
        floors=tuple(SnpFloors(product=product, **floors) for product in products),
        min_firmware=Firmware(0, 0, 0),
        min_abi=(0, 0),
        measurement=_ANY,
        host_data=_ANY,
        chips=_ANY,
        platform_required=PlatformInfo(0),
        guest_required=GuestPolicy(0),
        guest_allowed=GuestPolicy.SMT | GuestPolicy.CXL_ALLOW,
        max_vmpl=3,
        allow_vlek=True,
        require_crl=False,
        id_key_digest=_ANY,
        author_key_digest=_ANY,
        unsafe_simulated=True,
    )


def _flag(bit: GuestPolicy | PlatformInfo) -> Callable[[SnpPolicy, Any], SnpPolicy]:
    def change(policy: SnpPolicy, value: Any) -> SnpPolicy:
        if not value:
            return policy
        if isinstance(bit, GuestPolicy):
            return replace(policy, guest_required=policy.guest_required | bit)
        return replace(policy, platform_required=policy.platform_required | bit)

    return change


def _allow(bit: GuestPolicy) -> Callable[[SnpPolicy, Any], SnpPolicy]:
    def change(policy: SnpPolicy, value: Any) -> SnpPolicy:
        allowed = policy.guest_allowed | bit if value else policy.guest_allowed & ~bit
        return replace(policy, guest_allowed=allowed)

    return change


def _set(field: str, read: Callable[[Any], Any] = lambda value: value) -> Any:
    return lambda policy, value: replace(policy, **{field: read(value)})


_CHANGES: Final[dict[str, Callable[[SnpPolicy, Any], SnpPolicy]]] = {
    "allow_debug": _set("unsafe_debug"),
    "allow_migration": _set("unsafe_migration_agent"),
    "allow_migration_agent": _set("unsafe_migration_agent"),
    "allow_vlek": _set("allow_vlek"),
    "allow_smt": _allow(GuestPolicy.SMT),
    "allow_cxl": _allow(GuestPolicy.CXL_ALLOW),
    "allow_simulated": _set("unsafe_simulated"),
    "max_vmpl": _set("max_vmpl"),
    "require_crl": _set("require_crl"),
    "min_firmware": _set("min_firmware", lambda value: Firmware(*value)),
    "min_abi": _set("min_abi", tuple),
    "require_single_socket": _flag(GuestPolicy.SINGLE_SOCKET),
    "require_aes_256_xts": _flag(GuestPolicy.MEM_AES_256_XTS),
    "require_rapl_disabled": _flag(GuestPolicy.RAPL_DIS),
    "require_ciphertext_hiding": _flag(GuestPolicy.CIPHERTEXT_HIDING_DRAM),
    "require_page_swap_disabled": _flag(GuestPolicy.PAGE_SWAP_DISABLE),
    "require_alias_check": _flag(PlatformInfo.ALIAS_CHECK_COMPLETE),
    "require_alias_check_complete": _flag(PlatformInfo.ALIAS_CHECK_COMPLETE),
    "measurement": _set("measurement", _digests),
    "host_data": _set("host_data", _digests),
    "id_key_digest": _set("id_key_digest", _digests),
    "author_key_digest": _set("author_key_digest", _digests),
    "chip_id": _set("chips", _digests),
    "chips": _set("chips", _digests),
    "blocked_chips": _set("blocked_chips", _digests),
}
_FLOORS: Final = {"min_reported": "reported", "min_committed": "committed", "min_launch": "launch"}


def _policy(wanted: dict[str, Any], order: tuple[str, ...]) -> tuple[SnpPolicy, bytes | None]:
    """Return the policy that `wanted` describes, and the expected report data where it has any."""
    names = wanted.get("products", [product.value for product in Product])
    # A product that nobody has heard of accepts no report.
    products = frozenset(Product(name) for name in names if name in set(Product))
    floors = {
        field: _tcb(wanted[name], order) if wanted.get(name) is not None else _NO_FLOOR
        for name, field in _FLOORS.items()
    }
    policy, expected = _open(products, floors), None
    for name, value in wanted.items():
        plain = name.removeprefix("expected_").removeprefix("allowed_")
        if name == "products" or name in _FLOORS or value is None:
            continue
        if plain == "report_data":
            expected = bytes.fromhex(value)
        elif plain in _CHANGES:
            policy = _CHANGES[plain](policy, value)
        else:
            raise Unclear(f"policy member {name}")
    return policy, expected
