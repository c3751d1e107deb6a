"""Patch levels: which one a platform reaches, and what the parts are worth together.

Clauses docs/protocols/tdx.md#23 to #27. Inputs are authenticated facts; the functions are total
and decide nothing about acceptance. A level that is not found is None, and merging counts it as
Revoked.
"""

from __future__ import annotations

from operator import ge
from typing import TYPE_CHECKING

from confide.wire.collateral import TcbStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from confide.wire.collateral import PlatformLevel, SvnLevel, TcbInfo, TdxModule

__all__ = [
    "find_module",
    "find_platform_level",
    "find_svn_level",
    "merge_advisories",
    "merge_status",
    "relaunch_status",
]

_OUT_OF_DATE = frozenset(
    {TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED},
)
_CONFIGURATION = frozenset(
    {
        TcbStatus.CONFIGURATION_NEEDED,
        TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
        TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
    }
)
_SW_HARDENING = frozenset(
    {TcbStatus.SW_HARDENING_NEEDED, TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED}
)
_OUT_OF_DATE_BY_CONFIGURATION = {
    False: TcbStatus.OUT_OF_DATE,
    True: TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
}
# By (configuration, hardening).
_CURRENT = {
    (False, False): TcbStatus.UP_TO_DATE,
    (False, True): TcbStatus.SW_HARDENING_NEEDED,
    (True, False): TcbStatus.CONFIGURATION_NEEDED,
    (True, True): TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
}


def find_svn_level(levels: Sequence[SvnLevel], isv_svn: int) -> SvnLevel | None:
    """Return the level with the highest `isv_svn` that `isv_svn` reaches."""
    reached = [level for level in levels if level.isv_svn <= isv_svn]
    return max(reached, key=lambda level: level.isv_svn, default=None)


def find_module(info: TcbInfo, tee_tcb_svn: bytes) -> TdxModule | None:
    """
    Return the one module identity that `tee_tcb_svn` names, None for none or several.

    Version 0 stands for the modules before versions: `tdxModule`, which has no levels.
    """
    version = tee_tcb_svn[1]
    if version == 0:
        return info.module
    name = f"TDX_{version:02X}"
    found = [module for module in info.modules if module.id == name]
    return found[0] if len(found) == 1 else None


def _reaches(have: bytes, want: bytes, start: int = 0) -> bool:
    if len(have) != len(want):
        raise ValueError("component lists of different lengths cannot be compared")
    return all(map(ge, have[start:], want[start:]))


def find_platform_level(
    levels: Sequence[PlatformLevel], cpu_svn: bytes, pce_svn: int, tee_tcb_svn: bytes
) -> PlatformLevel | None:
    """
    Return the highest level that the platform reaches.

    That is the first in the list that no other reached level dominates: Intel's own first match
    where the list is in descending order, and the same level where it is not.
    """
    # From: docs/protocols/tdx.md#25: the first two TDX components are the module's, step 24.
    start = 2 if tee_tcb_svn[1] > 0 else 0
    reached = [
        level
        for level in levels
        if level.pce_svn <= pce_svn
        and _reaches(cpu_svn, level.sgx)
        and _reaches(tee_tcb_svn, level.tdx, start)
    ]
    for level in reached:
        if not any(_dominates(other, level) for other in reached):
            return level
    return None


def _dominates(a: PlatformLevel, b: PlatformLevel) -> bool:
    return (
        (a.sgx, a.pce_svn, a.tdx) != (b.sgx, b.pce_svn, b.tdx)
        and a.pce_svn >= b.pce_svn
        and _reaches(a.sgx, b.sgx)
        and _reaches(a.tdx, b.tdx)
    )


def merge_status(parts: Iterable[TcbStatus]) -> TcbStatus:
    """Return the merged status of docs/protocols/tdx.md#26; nothing at all merges to Revoked."""
    found = frozenset(parts)
    if not found or TcbStatus.REVOKED in found:
        return TcbStatus.REVOKED
    configuration = bool(found & _CONFIGURATION)
    if found & _OUT_OF_DATE:
        return _OUT_OF_DATE_BY_CONFIGURATION[configuration]
    return _CURRENT[configuration, bool(found & _SW_HARDENING)]


def relaunch_status(
    platform: TcbStatus, launch: TcbStatus, current: TcbStatus, qe: TcbStatus
) -> TcbStatus | None:
    """Return the relaunch status of docs/protocols/tdx.md#27, None where it does not apply."""
    if (
        launch is not TcbStatus.OUT_OF_DATE
        or current is not TcbStatus.UP_TO_DATE
        or qe is not TcbStatus.UP_TO_DATE
        or platform in _OUT_OF_DATE
        or platform is TcbStatus.REVOKED
    ):
        return None
    if platform in _CONFIGURATION:
        return TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED
    return TcbStatus.TD_RELAUNCH_ADVISED


def merge_advisories(levels: Iterable[SvnLevel | PlatformLevel | None]) -> tuple[str, ...]:
    """Return the union of the advisories of `levels`, sorted."""
    return tuple(sorted({name for level in levels if level for name in level.advisories}))
