"""From the section `snp` of a policy to the policy of SEV-SNP evidence. Pure.

Clauses: docs/protocols/policy.md §4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confide.appraisal.policy_rules import allows
from confide.appraisal.service_map import registers
from confide.appraisal.snp_policy import SnpFloors, SnpPolicy
from confide.wire.snp import Firmware, GuestPolicy, PlatformInfo, Product, SnpTcb

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.appraisal.policy_rules import Allowed
    from confide.appraisal.service_policy import Policy

__all__ = ["snp_policy_of"]


def _floor(product: Product, texts: Iterable[str]) -> SnpTcb:
    """Return the component-wise greatest of the floors written down for `product`."""
    size = 5 if product is Product.TURIN else 4
    least = [0] * size
    for text in texts:
        name, _, numbers = text.partition(":")
        parts = [int(part) for part in numbers.split(".")]
        if name == product.value and len(parts) == size:
            least = [max(pair) for pair in zip(least, parts, strict=True)]
    fmc = least.pop(0) if product is Product.TURIN else 0
    boot_loader, tee, snp, microcode = least
    return SnpTcb(boot_loader=boot_loader, tee=tee, snp=snp, microcode=microcode, fmc=fmc)


def _guest_allowed(allowed: Allowed) -> GuestPolicy:
    found = GuestPolicy(0)
    for name in ("SMT", "CXL_ALLOW"):
        if allows(allowed, name):
            found |= GuestPolicy[name]
    return found


def snp_policy_of(policy: Policy) -> SnpPolicy:
    """Return the SEV-SNP policy that the section `snp` writes down."""
    section = policy.snp
    products = frozenset(item for item in Product if allows(section.products, item.value))
    floors = {product: _floor(product, section.min_tcb) for product in products}
    return SnpPolicy(
        products=products,
        floors=tuple(
            SnpFloors(product=product, reported=least, committed=least, launch=least)
            for product, least in floors.items()
        ),
        min_firmware=Firmware(0, 0, 0),
        min_abi=(0, 0),
        measurement=registers(section.measurements),
        host_data=registers(section.host_data),
        chips=registers(section.chips),
        blocked_chips=frozenset(bytes.fromhex(name) for name in section.blocked_chips),
        id_key_digest=registers(section.id_keys),
        author_key_digest=registers(section.author_keys),
        platform_required=PlatformInfo.ALIAS_CHECK_COMPLETE
        if section.require_alias_check
        else PlatformInfo(0),
        guest_required=GuestPolicy.SINGLE_SOCKET
        if section.require_single_socket
        else GuestPolicy(0),
        guest_allowed=_guest_allowed(section.guest_allowed),
        max_vmpl=min(section.max_vmpl, 3),
        allow_vlek=section.unsafe_vlek,
        require_crl=section.require_crl,
        unsafe_debug=section.unsafe_debug,
        unsafe_migration_agent=section.unsafe_migration,
        unsafe_simulated=policy.unsafe_simulated,
    )
