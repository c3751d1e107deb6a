"""Edits that make a SIMULATED TDX platform dishonest in one place each. Used by `tdx_faults`.

An edit changes an honest part *before* it is signed, unless it is about a signature; everything
else stays right, so that only the step it is aimed at can notice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from confide.errors import Reason
from confide.wire.tdx import TdBody15

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.simulator.pki import CertificateSpec, CrlSpec
    from confide.wire.collateral import Collateral
    from confide.wire.json import JsonValue
    from confide.wire.pck import PckExtension
    from confide.wire.tdx import QeReport, TdBody10

__all__ = [
    "OLD_CPU_SVN",
    "Document",
    "Fault",
    "add_foreign_module",
    "add_second_root",
    "edit_body",
    "edit_crl",
    "edit_crl_time",
    "edit_dates",
    "edit_lifetime",
    "edit_platform",
    "edit_qe",
    "edit_spec",
    "edit_template",
    "flip_last",
    "flip_register",
    "flip_rtmr",
    "give_signer_extension",
    "put_bytes",
    "set_attributes",
    "set_members",
    "set_status",
    "set_svn",
    "shorten_components",
    "xor_byte",
]

Document = dict[str, Any]
# Below the highest platform level and on the next one: what an unpatched machine reports.
OLD_CPU_SVN: Final = bytes((2, 2, 2, 2, 3, 1, 0, 3)) + bytes(8)


def _nothing(_: object) -> None:
    return None


def _unchanged_platform(value: PckExtension) -> PckExtension:
    return value


def _unchanged_collateral(value: Collateral) -> Collateral:
    return value


def _unchanged_body(value: TdBody10) -> TdBody10:
    return value


def _unchanged_report(value: QeReport) -> QeReport:
    return value


def _unchanged_bytes(value: bytes) -> bytes:
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """
    The edits of one fault; the defaults change nothing.

    Callables that return nothing edit in place. Chains are roles, keys are labels of `pki`.
    """

    reason: Reason = Reason.EVIDENCE_MISSING
    seed_suffix: bytes = b""
    platform: Callable[[PckExtension], PckExtension] = _unchanged_platform
    certificates: Callable[[dict[str, CertificateSpec]], None] = _nothing
    lists: Callable[[dict[str, CrlSpec]], None] = _nothing
    tcb_info: Callable[[Document], None] = _nothing
    tcb_text: Callable[[bytes], bytes] = _unchanged_bytes
    qe_identity: Callable[[Document], None] = _nothing
    signer_chain: tuple[str, ...] = ("tcb", "root")
    collateral: Callable[[Collateral], Collateral] = _unchanged_collateral
    body: Callable[[TdBody10], TdBody10] = _unchanged_body
    needs_td15: bool = False
    qe_report: Callable[[QeReport], QeReport] = _unchanged_report
    qe_key: str = "pck"
    quote_key: str = "attestation"
    swaps_key: bool = False
    quote_chain: tuple[str, ...] = ("pck", "ca", "root")
    patch: Callable[[bytes], bytes] = _unchanged_bytes


def xor_byte(offset: int, value: int = 1) -> Callable[[bytes], bytes]:
    """Change bits of the byte at `offset` of the finished quote."""

    def patch(raw: bytes) -> bytes:
        return raw[:offset] + bytes([raw[offset] ^ value]) + raw[offset + 1 :]

    return patch


def put_bytes(offset: int, value: bytes) -> Callable[[bytes], bytes]:
    """Overwrite bytes of the finished quote."""

    def patch(raw: bytes) -> bytes:
        return raw[:offset] + value + raw[offset + len(value) :]

    return patch


def edit_spec(role: str, **changes: Any) -> Callable[[dict[str, CertificateSpec]], None]:
    """Edit who issues `role`, or for which key."""

    def edit(specs: dict[str, CertificateSpec]) -> None:
        specs[role] = replace(specs[role], **changes)

    return edit


def edit_template(role: str, **changes: Any) -> Callable[[dict[str, CertificateSpec]], None]:
    """Edit what stands in the certificate of `role`."""

    def edit(specs: dict[str, CertificateSpec]) -> None:
        specs[role] = replace(specs[role], template=replace(specs[role].template, **changes))

    return edit


def edit_lifetime(role: str, start_days: int, end_days: int) -> Callable[..., None]:
    """Move the validity of the certificate of `role`, in days from its birth."""

    def edit(specs: dict[str, CertificateSpec]) -> None:
        template = specs[role].template
        born = template.not_before
        template = replace(
            template,
            not_before=born + timedelta(days=start_days),
            not_after=born + timedelta(days=end_days),
        )
        specs[role] = replace(specs[role], template=template)

    return edit


def add_second_root(*roles: str) -> Callable[[dict[str, CertificateSpec]], None]:
    """Add `other-root`, equal in name, and let it issue `roles`."""

    def edit(specs: dict[str, CertificateSpec]) -> None:
        specs["other-root"] = replace(
            specs["root"], key="other-root", issuer="other-root", signing_key="other-root"
        )
        for role in roles:
            specs[role] = replace(specs[role], issuer="other-root", signing_key="other-root")

    return edit


def give_signer_extension(specs: dict[str, CertificateSpec]) -> None:
    """Give the TCB signer the SGX extension of the PCK."""
    specs["tcb"] = replace(specs["tcb"], platform=specs["pck"].platform)


def edit_crl(role: str, **changes: Any) -> Callable[[dict[str, CrlSpec]], None]:
    """Edit the revocation list of `role`."""

    def edit(lists: dict[str, CrlSpec]) -> None:
        lists[role] = replace(lists[role], **changes)

    return edit


def edit_crl_time(role: str, *, issued_days: int, until_days: int) -> Callable[..., None]:
    """Move the dates of the list of `role`, in days from its issue."""

    def edit(lists: dict[str, CrlSpec]) -> None:
        issued = lists[role].this_update
        lists[role] = replace(
            lists[role],
            this_update=issued + timedelta(days=issued_days),
            next_update=issued + timedelta(days=until_days),
        )

    return edit


def set_members(**changes: JsonValue) -> Callable[[Document], None]:
    """Set members of a document."""

    def edit(document: Document) -> None:
        document.update(changes)

    return edit


def add_foreign_module(document: Document) -> None:
    """Add an identity for the next module version, signed by somebody else."""
    first = document["tdxModuleIdentities"][0]
    other = {**first, "id": "TDX_02", "mrsigner": "11" * 48}
    document["tdxModuleIdentities"].append(other)


def edit_dates(*, issued_days: int, until_days: int) -> Callable[[Document], None]:
    """Move the dates of a document, in days from its issue."""

    def edit(document: Document) -> None:
        born = datetime.fromisoformat(document["issueDate"]).astimezone(UTC)
        for name, days in (("issueDate", issued_days), ("nextUpdate", until_days)):
            document[name] = (born + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")

    return edit


def set_status(status: str) -> Callable[[Document], None]:
    """Give the highest platform level another status."""

    def edit(document: Document) -> None:
        document["tcbLevels"][0]["tcbStatus"] = status

    return edit


def shorten_components(document: Document) -> None:
    """Leave four of the sixteen components of the highest level."""
    del document["tcbLevels"][0]["tcb"]["sgxtcbcomponents"][4:]


def edit_body(**changes: Any) -> Callable[[TdBody10], TdBody10]:
    """Set fields of the TD report body."""

    def edit(body: TdBody10) -> TdBody10:
        return replace(body, **changes)

    return edit


def flip_rtmr(index: int) -> Callable[[TdBody10], TdBody10]:
    """Change one bit of an RTMR."""

    def edit(body: TdBody10) -> TdBody10:
        zero, one, two, three = (
            flip_last(register) if number == index else register
            for number, register in enumerate(body.rtmr)
        )
        return replace(body, rtmr=(zero, one, two, three))

    return edit


def flip_last(value: bytes) -> bytes:
    """Change one bit of the last byte."""
    return value[:-1] + bytes([value[-1] ^ 1])


def flip_register(name: str) -> Callable[[TdBody10], TdBody10]:
    """Change one bit of a register."""

    def edit(body: TdBody10) -> TdBody10:
        changes: dict[str, Any] = {name: flip_last(getattr(body, name))}
        return replace(body, **changes)

    return edit


def set_attributes(bits: int) -> Callable[[TdBody10], TdBody10]:
    """Set TDATTRIBUTES."""
    return edit_body(td_attributes=bits.to_bytes(8, "little"))


def set_svn(*, launch: bytes, now: bytes) -> Callable[[TdBody10], TdBody10]:
    """Set the module at launch and the module now (TD 1.5)."""

    def edit(body: TdBody10) -> TdBody10:
        if not isinstance(body, TdBody15):
            raise TypeError("this fault needs TD 1.5")
        return replace(body, tee_tcb_svn=_tee(launch), tee_tcb_svn2=_tee(now))

    return edit


def _tee(start: bytes) -> bytes:
    return start + bytes(16 - len(start))


def edit_qe(**changes: Any) -> Callable[[QeReport], QeReport]:
    """Set fields of the QE report."""

    def edit(report: QeReport) -> QeReport:
        return replace(report, **changes)

    return edit


def edit_platform(**changes: Any) -> Callable[[PckExtension], PckExtension]:
    """Set items of the SGX extension."""

    def edit(platform: PckExtension) -> PckExtension:
        return replace(platform, **changes)

    return edit
