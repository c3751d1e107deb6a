"""What a relying party accepts of an authentic dstack machine. Pure data, refusing by default.

Clauses: docs/protocols/dstack.md §8. Lists have no default: an empty one accepts nothing, and
`UnsafeAny` says aloud that a value proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.appraisal.tdx_policy import UnsafeAny

if TYPE_CHECKING:
    from confide.appraisal.dstack_log import KeyProvider
    from confide.wire.json import JsonValue

__all__ = ["DstackPolicy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DstackPolicy:
    """
    The appraisal policy for one dstack machine, on top of the one for its quote.

    `compose_hashes` and `os_image_hashes` are SHA-256 values (32 bytes). An image hash counts only
    where the registers could be recomputed from it, so a list refuses machines without a
    measurement file; leave it `UnsafeAny` where the policy of the quote names the registers.
    `key_providers` compare name and id, `KeyProvider("none", b"")` stands for no event. `storage`
    are names of file systems, the empty one stands for no event. `unsafe_no_launch_document`
    accepts a machine whose compose document nobody showed, `unsafe_unset_mrconfigid` one whose host
    left MRCONFIGID zero, so that the app is bound by the log alone.
    """

    compose_hashes: frozenset[bytes] | UnsafeAny
    os_image_hashes: frozenset[bytes] | UnsafeAny
    key_providers: frozenset[KeyProvider] | UnsafeAny
    storage: frozenset[str] | UnsafeAny
    unsafe_no_launch_document: bool = False
    unsafe_unset_mrconfigid: bool = False

    @property
    def relaxations(self) -> tuple[str, ...]:
        """Everything that was switched off, sorted."""
        lists = ("compose_hashes", "os_image_hashes", "key_providers", "storage")
        found = {f"{name}: any" for name in lists if isinstance(getattr(self, name), UnsafeAny)}
        if self.unsafe_no_launch_document:
            found.add("launch document: may be absent")
        if self.unsafe_unset_mrconfigid:
            found.add("mrconfigid: may be unset")
        return tuple(sorted(found))

    def document(self) -> dict[str, JsonValue]:
        """Return the policy as JSON, every field present."""
        return {
            "compose_hashes": _hexes(self.compose_hashes),
            "os_image_hashes": _hexes(self.os_image_hashes),
            "key_providers": _providers(self.key_providers),
            "storage": _names(self.storage),
            "unsafe_no_launch_document": self.unsafe_no_launch_document,
            "unsafe_unset_mrconfigid": self.unsafe_unset_mrconfigid,
        }


def _hexes(values: frozenset[bytes] | UnsafeAny) -> JsonValue:
    return _names(values if isinstance(values, UnsafeAny) else frozenset(v.hex() for v in values))


def _providers(values: frozenset[KeyProvider] | UnsafeAny) -> JsonValue:
    if isinstance(values, UnsafeAny):
        return _names(values)
    return _names(frozenset(f"{value.name}:{value.id.hex()}" for value in values))


def _names(values: frozenset[str] | UnsafeAny) -> JsonValue:
    return "unsafe-any" if isinstance(values, UnsafeAny) else [*sorted(values)]
