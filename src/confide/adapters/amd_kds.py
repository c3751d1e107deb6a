"""AMD's certificates for an SNP report, from its key distribution service (KDS).

The port `SnpSource`. Source: AMD 57230, "Versioned Chip Endorsement Key Certificate and KDS
Interface Specification"; clauses docs/protocols/fetching.md#6 and #11. Nothing is verified here.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from confide.adapters.bounded_http import Exchange
from confide.adapters.endorsement_http import Ask, NotThere, all_of, plain_url
from confide.crypto.x509 import parse_crl_der, split_pem_chain
from confide.crypto.x509_rsa import parse_leaf_der, parse_rsa_certificate_der
from confide.errors import FormatError, Reason, Unavailable
from confide.wire.endorsements import SnpEndorsement
from confide.wire.snp import Product, SigningKeyKind, SnpReport, parse_report, product_of_cpuid

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.adapters.endorsement_http import Answer, EndorsementFetcher
    from confide.wire.service import SnpPart

__all__ = ["AMD_KDS", "AmdKds", "vcek_path"]

AMD_KDS: Final = "https://kdsintf.amd.com"
_KEEP_CERTIFICATE: Final = timedelta(days=30)
_KEEP_CRL: Final = timedelta(hours=24)
# Precedent: a VCEK has 1.4 KiB, a chain 5 KiB, AMD's lists below 2 KiB.
_MAX_CERTIFICATE: Final = 16 * 1024
_MAX_CRL: Final = 1 << 20
# From: AMD 57230 §3: the extension with the identifier of the chip, unwrapped.
_HARDWARE_ID: Final = "1.3.6.1.4.1.3704.1.4"
# From: AMD 57230 §4.1 for family 1Ah: identifiers have 8 bytes there.
_TURIN_CHIP_ID: Final = 8
_CLAUSE = "docs/protocols/fetching.md#11"
_ADVICE = (
    "AMD limits requests: try again in a minute, or ask the service to pass its certificates along"
)


def _refuse(what: str) -> FormatError:
    return FormatError(what, reason=Reason.CHAIN, clause=_CLAUSE)


def _chip_id(report: SnpReport, product: Product) -> bytes:
    return report.chip_id[:_TURIN_CHIP_ID] if product is Product.TURIN else report.chip_id


def vcek_path(report: SnpReport, product: Product) -> str:
    """Return the path and query of the VCEK that signed `report`, if its chip is a `product`."""
    tcb = report.reported_tcb.components(product)
    fmc = f"fmcSPL={tcb.fmc:02d}&" if product is Product.TURIN else ""
    return (
        f"/vcek/v1/{product}/{_chip_id(report, product).hex()}?{fmc}blSPL={tcb.boot_loader:02d}"
        f"&teeSPL={tcb.tee:02d}&snpSPL={tcb.snp:02d}&ucodeSPL={tcb.microcode:02d}"
    )


class AmdKds:
    """Certificates from AMD; `base` is for stand-ins and mirrors."""

    def __init__(self, fetcher: EndorsementFetcher, *, base: str = AMD_KDS) -> None:
        self._fetcher = fetcher
        self._base = plain_url(base, what="the URL of AMD's service")

    async def endorsement(self, part: SnpPart) -> SnpEndorsement:
        """
        Return leaf, chain and revocation list for the key that signed `part.report`.

        Raises `Unavailable`; `FormatError` for a report that names no chip of a known product.
        """
        report = parse_report(part.report)
        if report.signing_key is None:
            raise _refuse("SNP report: signed by neither VCEK nor VLEK")
        kind = report.signing_key
        if part.leaf_der is not None:
            leaf, product = part.leaf_der, _product_of_leaf(part.leaf_der)
        else:
            leaf, product = await self._vcek(report, kind)
        chain, crl = await all_of((self._chain(product, kind), self._crl(product, kind)))
        return SnpEndorsement(leaf_der=leaf, chain_pem=chain, crl_der=crl)

    async def _vcek(self, report: SnpReport, kind: SigningKeyKind) -> tuple[bytes, Product]:
        if kind is SigningKeyKind.VLEK:
            raise Unavailable(
                "AMD KDS: no VLEK: AMD gives it to the cloud alone. Ask the service to pass its "
                "certificate along"
            )
        if report.mask_chip_key or not any(report.chip_id):
            raise Unavailable(
                "AMD KDS: no VCEK: the report hides which chip signed it. Ask the service to pass "
                "its certificate along"
            )
        candidates = _candidates(report)
        for product in candidates:
            try:
                return await self._leaf(report, product), product
            except NotThere:
                if product is candidates[-1]:
                    raise
        raise _refuse("SNP report: no product")

    async def _leaf(self, report: SnpReport, product: Product) -> bytes:
        chip = _chip_id(report, product)

        def read(answer: Answer) -> tuple[bytes, datetime]:
            leaf = parse_leaf_der(answer.body, what="VCEK", reason=Reason.CHAIN)
            if not (leaf.extension(_HARDWARE_ID) or b"").endswith(chip):
                raise _refuse("the certificate is of another chip")
            return answer.body, leaf.not_after

        tcb = report.reported_tcb.components(product)
        what = f"VCEK of the {product} chip {chip.hex()[:16]}… at {tcb}"
        return await self._get(what, vcek_path(report, product), read, keep=_KEEP_CERTIFICATE)

    async def _chain(self, product: Product, kind: SigningKeyKind) -> bytes:
        def read(answer: Answer) -> tuple[bytes, datetime]:
            ders = split_pem_chain(
                answer.body, max_certificates=2, what="AMD chain", reason=Reason.CHAIN
            )
            chain = [
                parse_rsa_certificate_der(der, what="AMD chain", reason=Reason.CHAIN)
                for der in ders
            ]
            if not chain[-1].subject.endswith(f"ARK-{product}"):
                raise _refuse("the chain is of another product")
            return answer.body, min(each.not_after for each in chain)

        path = f"/{kind.lower()}/v1/{product}/cert_chain"
        what = f"{kind} chain of {product}"
        return await self._get(what, path, read, keep=_KEEP_CERTIFICATE)

    async def _crl(self, product: Product, kind: SigningKeyKind) -> bytes:
        def read(answer: Answer) -> tuple[bytes, datetime | None]:
            crl = parse_crl_der(answer.body, what="AMD's CRL", reason=Reason.CRL_FORMAT)
            if not crl.issuer.endswith(f"-{product}"):
                raise _refuse("the revocation list is of another product")
            return answer.body, crl.next_update

        path = f"/{kind.lower()}/v1/{product}/crl"
        what = f"revocation list of {product}"
        return await self._get(what, path, read, keep=_KEEP_CRL, max_bytes=_MAX_CRL)

    async def _get(
        self,
        what: str,
        path: str,
        read: Callable[[Answer], tuple[bytes, datetime | None]],
        *,
        keep: timedelta,
        max_bytes: int = _MAX_CERTIFICATE,
    ) -> bytes:
        request = Exchange(url=self._base + path, max_bytes=max_bytes)
        ask = Ask(service="AMD KDS", what=what, advice=_ADVICE, request=request, keep=keep)
        return await self._fetcher.fetch(ask, read)


def _candidates(report: SnpReport) -> tuple[Product, ...]:
    if report.cpuid is None:
        # Version 2 does not say; Turin came later.
        return Product.MILAN, Product.GENOA
    product = product_of_cpuid(report.cpuid[0], report.cpuid[1])
    if product is None:
        raise _refuse("SNP report: a processor that is not known")
    return (product,)


def _product_of_leaf(der: bytes) -> Product:
    issuer = parse_leaf_der(der, what="leaf", reason=Reason.CHAIN).issuer
    # From: AMD 57230 §3.2: `SEV-Milan`, `SEV-VLEK-Milan`.
    for product in Product:
        if issuer.endswith(f"-{product}"):
            return product
    raise _refuse("leaf: issued for no known product")
