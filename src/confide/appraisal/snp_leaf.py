"""AMD's extensions in a VCEK or VLEK certificate: product, security versions, chip or operator.

Format: AMD 57230 §3, "VCEK certificate" and "VLEK certificate", arc 1.3.6.1.4.1.3704.1; clauses
docs/protocols/snp.md#5 to #7. As believable as the certificate around them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.errors import FormatError, Reason
from confide.wire.der import OCTET_STRING, DerReader
from confide.wire.snp import Product

if TYPE_CHECKING:
    from confide.crypto.x509 import Certificate

__all__ = ["AMD_ARC", "read_components", "read_owner", "read_product"]

AMD_ARC: Final = "1.3.6.1.4.1.3704.1"
_PRODUCT_NAME: Final = f"{AMD_ARC}.2"
_TCB: Final = f"{AMD_ARC}.3"
_HARDWARE_ID: Final = f"{AMD_ARC}.4"
_OPERATOR: Final = f"{AMD_ARC}.5"
# From: AMD 57230 §3: .1 boot loader, .2 TEE, .3 SNP, .4 to .7 without a name, .8 microcode, .9 FMC.
_COMPONENTS: Final = range(1, 10)
# From: X.680 §8.4: the tag of IA5String.
_IA5_STRING: Final = 0x16
# From: AMD 57230 §3: the hardware id of families 19h and 1Ah, written without a DER header.
_HARDWARE_ID_BYTES: Final = (64, 8)
_PRODUCTS: Final = {
    "Milan": Product.MILAN,
    "Genoa": Product.GENOA,
    # From: AMD 57230 §3.1: under Genoa's root.
    "Bergamo": Product.GENOA,
    "Siena": Product.GENOA,
    "Turin": Product.TURIN,
}


def _refuse(why: str, reason: Reason) -> FormatError:
    return FormatError(f"leaf certificate: {why}", reason=reason, clause="docs/protocols/snp.md#5")


def _ia5(raw: bytes, reason: Reason) -> str:
    reader = DerReader(raw, what="leaf certificate", reason=reason)
    text = reader.read(_IA5_STRING)
    reader.finish()
    try:
        return text.decode("ascii")
    except UnicodeDecodeError as error:
        raise _refuse("a name is not ASCII", reason) from error


def _number(raw: bytes) -> int:
    reader = DerReader(raw, what="leaf certificate", reason=Reason.TCB_MISMATCH)
    number = reader.unsigned(255)
    reader.finish()
    return number


def _hardware_id(raw: bytes) -> bytes:
    # AMD writes the bytes bare; an OCTET STRING around them is what X.509 would have.
    if len(raw) in _HARDWARE_ID_BYTES:
        return raw
    reader = DerReader(raw, what="leaf certificate", reason=Reason.CHIP_ID)
    value = reader.read(OCTET_STRING)
    reader.finish()
    if len(value) not in _HARDWARE_ID_BYTES:
        raise _refuse("the hardware id has neither 64 nor 8 bytes", Reason.CHIP_ID)
    return value


def read_product(leaf: Certificate) -> tuple[Product | None, str]:
    """
    Return the product that `leaf` is for, None for a name that is not known, and AMD's words.

    Raises `FormatError` with PRODUCT_MISMATCH.
    """
    raw = leaf.extension(_PRODUCT_NAME)
    name = "" if raw is None else _ia5(raw, Reason.PRODUCT_MISMATCH)
    return _PRODUCTS.get(name.partition("-")[0]), name


def read_components(leaf: Certificate) -> dict[int, int]:
    """
    Return the security versions in `leaf`, by the last arc of their extensions.

    Raises `FormatError` with TCB_MISMATCH.
    """
    found = {arc: leaf.extension(f"{_TCB}.{arc}") for arc in _COMPONENTS}
    return {arc: _number(raw) for arc, raw in found.items() if raw is not None}


def read_owner(leaf: Certificate) -> tuple[bytes | None, str | None]:
    """
    Return hardware id (of a VCEK) and operator (of a VLEK), None for what is absent.

    Raises `FormatError` with CHIP_ID.
    """
    chip, operator = leaf.extension(_HARDWARE_ID), leaf.extension(_OPERATOR)
    return (
        None if chip is None else _hardware_id(chip),
        None if operator is None else _ia5(operator, Reason.CHIP_ID),
    )
