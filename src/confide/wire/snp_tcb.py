"""Which AMD processor, and what the eight bytes of its firmware level mean there. Hostile bytes.

Layout: AMD 56860, TCB_VERSION, CPUID_FAM_ID and CPUID_MOD_ID; clauses docs/protocols/snp.md#1.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from confide.wire.snp_names import Product

__all__ = ["Product", "SnpTcb", "Tcb", "encode_tcb", "product_of_cpuid"]


# From: AMD 57230 §3.1, product names, and AMD 56860, CPUID_FAM_ID and CPUID_MOD_ID: Genoa's key
# also stands behind Bergamo and Siena (models A0h to AFh).
_PRODUCTS_BY_CPUID: Final = (
    (0x19, 0x00, 0x0F, Product.MILAN),
    (0x19, 0x10, 0x1F, Product.GENOA),
    (0x19, 0xA0, 0xAF, Product.GENOA),
    (0x1A, 0x00, 0x1F, Product.TURIN),
)


def product_of_cpuid(family: int, model: int) -> Product | None:
    """Return the product with this combined family and model, None for any that is not known."""
    for known, low, high, product in _PRODUCTS_BY_CPUID:
        if family == known and low <= model <= high:
            return product
    return None


# From: AMD 56860, TCB_VERSION, and its form for family 1Ah: byte of each component.
_LAYOUTS: Final = {
    Product.MILAN: {"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7},
    Product.GENOA: {"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7},
    Product.TURIN: {"fmc": 0, "boot_loader": 1, "tee": 2, "snp": 3, "microcode": 7},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpTcb:
    """
    Security versions of one firmware level, 0 to 255 each.

    `fmc` exists on Turin only and is 0 elsewhere. `other` are the four (Turin: three) bytes that
    have no name yet, in their order.
    """

    boot_loader: int
    tee: int
    snp: int
    microcode: int
    fmc: int = 0
    other: bytes = b""

    def below(self, floor: SnpTcb) -> tuple[str, ...]:
        """Return the names of the components that do not reach `floor`."""
        names = (item.name for item in fields(self) if item.name != "other")
        return tuple(name for name in names if getattr(self, name) < getattr(floor, name))

    def __str__(self) -> str:
        fmc = f"fmc {self.fmc}, " if self.fmc else ""
        return (
            f"{fmc}boot loader {self.boot_loader}, TEE {self.tee}, SNP {self.snp}, "
            f"microcode {self.microcode}"
        )


@dataclass(frozen=True, slots=True)
class Tcb:
    """TCB_VERSION as it stands in the report, 8 bytes."""

    raw: bytes

    def components(self, product: Product) -> SnpTcb:
        """Return the security versions by the layout of `product`."""
        layout = _LAYOUTS[product]
        named = {name: self.raw[at] for name, at in layout.items()}
        used = set(layout.values())
        other = bytes(byte for at, byte in enumerate(self.raw) if at not in used)
        return SnpTcb(**named, other=other)


def encode_tcb(tcb: SnpTcb, product: Product) -> Tcb:
    """Return `tcb` in the layout of `product`; `ValueError` where it has no place for `fmc`."""
    layout = _LAYOUTS[product]
    if tcb.fmc and "fmc" not in layout:
        raise ValueError(f"{product} has no FMC component")
    raw = bytearray(8)
    rest = [at for at in range(8) if at not in set(layout.values())]
    for at, byte in zip(rest, tcb.other or bytes(len(rest)), strict=True):
        raw[at] = byte
    for name, at in layout.items():
        raw[at] = getattr(tcb, name)
    return Tcb(bytes(raw))
