"""Intel's collateral for a TDX quote: from Intel's service, or from a PCCS.

The port `CollateralSource`. Source: Intel PCS API v4; clauses docs/protocols/fetching.md#6 and #10.
What comes is assembled into the container of docs/protocols/tdx.md#4 and verified elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final, Literal

from confide.adapters.bounded_http import Exchange
from confide.adapters.endorsement_http import Ask, all_of, plain_url
from confide.crypto.x509 import Certificate, parse_crl_der, parse_pem_chain
from confide.errors import FormatError, Reason
from confide.wire.collateral import (
    Collateral,
    encode_collateral,
    parse_qe_identity,
    parse_tcb_info,
)
from confide.wire.pck import SGX_EXTENSION_OID, parse_pck_extension
from confide.wire.pcs import issuer_chain, revocation_list, signed_document
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from confide.adapters.endorsement_http import Answer, EndorsementFetcher

__all__ = ["INTEL_PCS", "INTEL_ROOT_CRL", "IntelPcs", "Platform", "platform_of"]

INTEL_PCS: Final = "https://api.trustedservices.intel.com"
# From: Intel PCS API v4, "Get SGX Root CA CRL" and the distribution point in Intel's certificates.
INTEL_ROOT_CRL: Final = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
_TDX: Final = "/tdx/certification/v4"
_SGX: Final = "/sgx/certification/v4"
_TCB_CHAIN: Final = "tcb-info-issuer-chain"
_QE_CHAIN: Final = "sgx-enclave-identity-issuer-chain"
_CRL_CHAIN: Final = "sgx-pck-crl-issuer-chain"
_KEEP: Final = timedelta(hours=24)
# From: wire/collateral.py, the bounds of the container that all of it has to fit into.
_MAX_DOCUMENT: Final = 512 * 1024
_MAX_CRL: Final = 256 * 1024
_REASON = Reason.COLLATERAL_FORMAT
_CLAUSE = "docs/protocols/fetching.md#10"


@dataclass(frozen=True, slots=True)
class Platform:
    """Which platform signed a quote, by its own word: what to ask Intel for."""

    fmspc: str
    authority: Literal["platform", "processor"]
    authority_name: str


def platform_of(quote: bytes) -> Platform:
    """
    Return what `quote` says about its platform. Nothing is verified.

    Raises `FormatError` for a quote without a PCK certificate of a known kind.
    """
    reason = Reason.PCK_CHAIN
    chain = parse_pem_chain(
        parse_quote(quote).pck_chain, max_certificates=3, what="PCK chain", reason=reason
    )
    leaf = chain[0]
    extension = leaf.extension(SGX_EXTENSION_OID)
    if extension is None:
        raise FormatError("PCK certificate: no SGX extension", reason=reason, clause=_CLAUSE)
    return Platform(parse_pck_extension(extension).fmspc.hex(), _authority(leaf), leaf.issuer)


def _authority(leaf: Certificate) -> Literal["platform", "processor"]:
    # From: Intel SGX PCK Certificate and CRL Profile Specification §1.2: the two PCK CAs.
    if leaf.issuer.endswith("PCK Platform CA"):
        return "platform"
    if leaf.issuer.endswith("PCK Processor CA"):
        return "processor"
    raise FormatError(
        "PCK certificate: issued by neither of Intel's two authorities",
        reason=Reason.PCK_CHAIN,
        clause=_CLAUSE,
    )


class IntelPcs:
    """
    Collateral from Intel (`pccs` None), or from the PCCS at `pccs` (`https://host:8081`).

    `root_crl` and `base` are for stand-ins of Intel's own service.
    """

    def __init__(
        self,
        fetcher: EndorsementFetcher,
        *,
        pccs: str | None = None,
        base: str = INTEL_PCS,
        root_crl: str = INTEL_ROOT_CRL,
    ) -> None:
        self._fetcher = fetcher
        self._service = "Intel PCS" if pccs is None else "PCCS"
        self._base = plain_url(base if pccs is None else pccs, what="the URL of the PCCS")
        self._root_crl = root_crl if pccs is None else f"{self._base}{_SGX}/rootcacrl"
        self._advice = (
            "Check the connection to this host, or name a PCCS (--pccs URL)"
            if pccs is None
            else "Check the PCCS: it has to be reachable and to know this platform"
        )

    async def collateral(self, quote: bytes) -> bytes:
        """
        Return the collateral container for the platform that signed `quote`.

        Raises `Unavailable`; `FormatError` for a quote that names no platform.
        """
        platform = platform_of(quote)
        info, identity, pck, root = await all_of(
            (
                self._tcb_info(platform),
                self._qe_identity(),
                self._pck_crl(platform),
                self._root(),
            )
        )
        (tcb_info, tcb_signature, tcb_chain), (qe, qe_signature, qe_chain) = info, identity
        return encode_collateral(
            Collateral(
                root_crl=root[0],
                pck_crl=pck[0],
                pck_crl_chain=pck[2],
                tcb_info=tcb_info,
                tcb_info_signature=tcb_signature,
                tcb_info_chain=tcb_chain,
                qe_identity=qe,
                qe_identity_signature=qe_signature,
                qe_identity_chain=qe_chain,
                pck_chain=None,
            )
        )

    def _ask(self, what: str, url: str, *, header: str = "", max_bytes: int = _MAX_DOCUMENT) -> Ask:
        return Ask(
            service=self._service,
            what=what,
            advice=self._advice,
            request=Exchange(url=url, max_bytes=max_bytes),
            headers=(header,) if header else (),
            keep=_KEEP,
        )

    async def _tcb_info(self, platform: Platform) -> tuple[bytes, bytes, bytes]:
        what = f"TDX TCB info of FMSPC {platform.fmspc}"
        url = f"{self._base}{_TDX}/tcb?fmspc={platform.fmspc}"

        def read(answer: Answer) -> tuple[tuple[bytes, bytes, bytes], datetime]:
            document, signature = signed_document(answer.body, "tcbInfo")
            info = parse_tcb_info(document)
            if info.fmspc.hex() != platform.fmspc:
                _refuse("the TCB info is of another platform")
            chain, end = _issuers(answer.headers[_TCB_CHAIN])
            return (document, signature, chain), min(info.next_update, end)

        return await self._fetcher.fetch(self._ask(what, url, header=_TCB_CHAIN), read)

    async def _qe_identity(self) -> tuple[bytes, bytes, bytes]:
        url = f"{self._base}{_TDX}/qe/identity"

        def read(answer: Answer) -> tuple[tuple[bytes, bytes, bytes], datetime]:
            document, signature = signed_document(answer.body, "enclaveIdentity")
            identity = parse_qe_identity(document)
            chain, end = _issuers(answer.headers[_QE_CHAIN])
            return (document, signature, chain), min(identity.next_update, end)

        return await self._fetcher.fetch(self._ask("TD QE identity", url, header=_QE_CHAIN), read)

    async def _pck_crl(self, platform: Platform) -> tuple[bytes, bytes, bytes]:
        ask = self._ask(
            f"revocation list of the {platform.authority} CA",
            f"{self._base}{_SGX}/pckcrl?ca={platform.authority}&encoding=der",
            header=_CRL_CHAIN,
            # Hex text takes two characters for a byte.
            max_bytes=2 * _MAX_CRL + 2,
        )

        def read(answer: Answer) -> tuple[tuple[bytes, bytes, bytes], datetime | None]:
            der = revocation_list(answer.body)
            crl = parse_crl_der(der, what="PCK CRL", reason=_REASON, max_bytes=_MAX_CRL)
            if crl.issuer != platform.authority_name:
                _refuse("the revocation list is of another authority")
            chain, end = _issuers(answer.headers[_CRL_CHAIN])
            until = None if crl.next_update is None else min(crl.next_update, end)
            return (der, b"", chain), until

        return await self._fetcher.fetch(ask, read)

    async def _root(self) -> tuple[bytes, bytes, bytes]:
        ask = self._ask("revocation list of the root", self._root_crl, max_bytes=2 * _MAX_CRL + 2)

        def read(answer: Answer) -> tuple[tuple[bytes, bytes, bytes], datetime | None]:
            der = revocation_list(answer.body)
            crl = parse_crl_der(der, what="root CRL", reason=_REASON, max_bytes=_MAX_CRL)
            if not crl.issuer.endswith("SGX Root CA"):
                _refuse("the revocation list is of another authority")
            return (der, b"", b""), crl.next_update

        return await self._fetcher.fetch(ask, read)


def _issuers(header: str) -> tuple[bytes, datetime]:
    """Return the chain in `header`, and when the first of its certificates ends."""
    pem = issuer_chain(header)
    chain = parse_pem_chain(pem, max_certificates=3, what="issuer chain", reason=_REASON)
    return pem, min(certificate.not_after for certificate in chain)


def _refuse(what: str) -> None:
    raise FormatError(what, reason=_REASON, clause=_CLAUSE)
