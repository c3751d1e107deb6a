"""A TDX guest of dstack: quotes from its agent, RTMR3 through sysfs or through the agent.

The port `QuoteSource`; docs/protocols/hardware.md §5. dstack measures its own boot into RTMR3
before anything of ours runs, so the log begins with dstack's events and ends with ours.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Final

from confide.adapters.dstack_agent import DSTACK_SOCKETS
from confide.adapters.tdx_firmware import read_ccel, require_replay
from confide.adapters.tdx_register import RtmrRegister
from confide.adapters.tdx_tsm import TdxGuest, TdxPlaces
from confide.appraisal.eventlog import replay_runtime
from confide.appraisal.steps import Refused
from confide.errors import ConfigurationError, Unavailable
from confide.wire.ccel import CcelEvent, encode_ccel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.adapters.dstack_agent import DstackAgent, DstackQuote
    from confide.adapters.tsm_files import AttributeFiles
    from confide.ports import QuoteSource
    from confide.wire.rtmr_log import LogEntry, RuntimeEvent

__all__ = ["DstackGuest", "find_dstack", "open_dstack_guest"]

_RUNTIME_REGISTER: Final = 3
# Any report data will do for a look at the registers.
_NOTHING: Final = bytes(64)


def find_dstack(files: AttributeFiles, sockets: Sequence[str] = DSTACK_SOCKETS) -> str:
    """Return the agent's socket; `ConfigurationError` where there is none."""
    for path in sockets:
        if files.exists(path):
            return path
    raise ConfigurationError(
        f"no dstack agent: none of {', '.join(sockets)} is here; mount the socket into "
        "this container"
    )


def _runtime(entries: Sequence[LogEntry]) -> tuple[RuntimeEvent, ...]:
    return tuple(entry.event for entry in entries if entry.register == _RUNTIME_REGISTER)


def _require_runtime(found: DstackQuote) -> tuple[RuntimeEvent, ...]:
    """Return the log of RTMR3, which reproduces the quoted register; `Unavailable` otherwise."""
    entries = [entry for entry in found.entries if entry.register == _RUNTIME_REGISTER]
    try:
        replayed = replay_runtime(entries)
    except Refused as error:
        raise Unavailable(
            "the dstack agent's log holds a digest that is not its event's"
        ) from error
    if replayed != found.rtmr[_RUNTIME_REGISTER]:
        raise Unavailable("the dstack agent's log does not reproduce the quoted RTMR3")
    return _runtime(entries)


def _firmware_log(entries: Sequence[LogEntry]) -> bytes:
    """Return a firmware log of the agent's digests; labels of events stay, unauthenticated."""
    return encode_ccel(
        tuple(
            CcelEvent(entry.register + 1, entry.event_type, entry.digest, entry.event.payload)
            for entry in entries
            if entry.register < _RUNTIME_REGISTER
        )
    )


class DstackGuest:
    """The port `QuoteSource` over an agent of 0.5.x, which extends RTMR3 when it is asked to."""

    def __init__(
        self, agent: DstackAgent, log: Sequence[RuntimeEvent], firmware_log: bytes
    ) -> None:
        self._agent = agent
        self._log = [(event.name, event.payload) for event in log]
        self._firmware_log = firmware_log
        self._lock = threading.Lock()

    async def quote(self, report_data: bytes) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
        """Return a quote over `report_data` and its log: what was there before, and ours."""
        return await asyncio.to_thread(self._quote, report_data)

    def _quote(self, report_data: bytes) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
        with self._lock:
            found = self._agent.quote(report_data)
            return found.quote, self._require_ours(found)

    def _require_ours(self, found: DstackQuote) -> tuple[RuntimeEvent, ...]:
        events = _require_runtime(found)
        if [(event.name, event.payload) for event in events] != self._log:
            raise Unavailable("RTMR3 does not hold what this node extended, no more and no less")
        return events

    async def extend(self, event: RuntimeEvent) -> None:
        """Extend RTMR3 and append to the log, or do neither; a quote shows which."""
        await asyncio.to_thread(self._extend, event)

    def _extend(self, event: RuntimeEvent) -> None:
        with self._lock:
            self._agent.emit(event)
            self._log.append((event.name, event.payload))
            try:
                self._require_ours(self._agent.quote(_NOTHING))
            except Unavailable:
                # Where the register moved after all, no later quote fits this log: none is given.
                self._log.pop()
                raise

    def firmware_log(self) -> bytes:
        """Return the log of this boot's firmware."""
        return self._firmware_log


def open_dstack_guest(
    agent: DstackAgent, files: AttributeFiles, *, places: TdxPlaces | None = None
) -> QuoteSource:
    """
    Return the guest that `agent` speaks for; makes one quote to learn what was measured before.

    RTMR3 is extended through sysfs where the kernel offers it, else by the agent where it still
    does. Raises `ConfigurationError` where neither can, or where a log does not hold.
    """
    where = places or TdxPlaces()
    found = agent.quote(_NOTHING)
    before = _require_runtime(found)
    if files.exists(where.ccel_table):
        firmware_log = read_ccel(files, table=where.ccel_table, data=where.ccel_data)
    else:
        firmware_log = _firmware_log(found.entries)
    require_replay(firmware_log, found.rtmr)
    if files.exists(where.measurements):
        register = RtmrRegister(files, folder=where.measurements, log=before)
        return TdxGuest(lambda data: agent.quote(data).quote, register, firmware_log)
    if agent.emits_events:
        return DstackGuest(agent, before, firmware_log)
    raise ConfigurationError(
        "RTMR3 cannot be extended here: this dstack agent has no EmitEvent (gone with 0.6), and "
        "the kernel offers no register (6.16 or later does, where "
        "/sys/devices/virtual/misc/tdx_guest is visible in this container). A node that "
        "cannot measure itself is believed by nobody"
    )
