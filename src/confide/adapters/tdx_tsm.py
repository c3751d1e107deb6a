"""A TDX guest with a plain kernel: quotes by configfs-tsm. docs/protocols/hardware.md §2.

The port `QuoteSource`. Nothing here proves anything: a quote is compared with what was asked for so
that a mistake is noticed where it was made; whether it is genuine, others appraise.
"""

from __future__ import annotations

import asyncio
import errno
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.adapters.tdx_firmware import CCEL_DATA, CCEL_TABLE, read_ccel, require_replay
from confide.adapters.tdx_register import MEASUREMENTS, RtmrRegister, read_registers
from confide.adapters.tsm_files import refused_by_kernel
from confide.errors import ConfigurationError, FormatError, Unavailable
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confide.adapters.tsm_files import AttributeFiles
    from confide.wire.rtmr_log import RuntimeEvent
    from confide.wire.tdx import TdBody10

__all__ = [
    "PROVIDER",
    "TSM_REPORTS",
    "TdxGuest",
    "TdxPlaces",
    "TsmQuotes",
    "open_tdx_guest",
    "require_quote",
]

# From: Linux ABI testing/configfs-tsm-report.
TSM_REPORTS: Final = "/sys/kernel/config/tsm/report"
PROVIDER: Final = "tdx_guest"
_REPORT_DATA_BYTES: Final = 64
# From: wire/tdx.py, the bound of its reader; the kernel's own is 32 KiB.
_MAX_QUOTE_BYTES: Final = 64 * 1024
_MAX_TEXT_BYTES: Final = 4096
_ATTEMPTS: Final = 5
_FIRST_PAUSE_SECONDS: Final = 0.05
# Somebody else is asking, a signal came, or the host took too long: none of it lasts.
_PASSING: Final = frozenset({errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.EAGAIN})


@dataclass(frozen=True, slots=True)
class TdxPlaces:
    """Where the kernel offers what."""

    reports: str = TSM_REPORTS
    measurements: str = MEASUREMENTS
    ccel_table: str = CCEL_TABLE
    ccel_data: str = CCEL_DATA


class _Overtaken(Exception):
    """Somebody else wrote to our report between our write and our read."""


class TsmQuotes:
    """
    Quotes over 64 bytes each, one report directory for each quote, removed when it is made.

    `name` is the prefix of those directories, of this process alone. `pause` waits between
    attempts.
    """

    def __init__(
        self,
        files: AttributeFiles,
        *,
        name: str,
        reports: str = TSM_REPORTS,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._files = files
        self._reports = reports
        self._name = name
        self._made = 0
        self._pause = pause

    def require_provider(self) -> None:
        """Raise `ConfigurationError` where reports come from something else than TDX."""
        report = self._open()
        try:
            self._require_provider(report)
        except OSError as error:
            raise refused_by_kernel(error, "the provider of reports cannot be read") from error
        finally:
            self._close(report)

    def quote(self, report_data: bytes) -> bytes:
        """
        Return a quote over exactly `report_data`.

        Raises `Unavailable` when the kernel or the host fails, or when every attempt was overtaken
        by somebody else; `ConfigurationError` where the machine cannot.
        """
        if len(report_data) != _REPORT_DATA_BYTES:
            raise ValueError("report data has 64 bytes")
        for attempt in range(_ATTEMPTS):
            if attempt:
                self._pause(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            report = self._open()
            try:
                return self._ask(report, report_data)
            except _Overtaken:
                problem: Exception = Unavailable(
                    "every quote was overtaken: somebody else writes to this node's report"
                )
            except OSError as error:
                problem = refused_by_kernel(error, "no quote: the kernel or the host refused")
                problem.__cause__ = error
                if error.errno not in _PASSING:
                    break
            finally:
                self._close(report)
        raise problem

    def _open(self) -> str:
        self._made += 1
        path = f"{self._reports}/{self._name}-{self._made}"
        try:
            self._files.make_directory(path)
        except FileNotFoundError as error:
            raise ConfigurationError(
                f"no {self._reports}: this needs a TDX guest with kernel 6.7 or later and the "
                "module tdx_guest, and configfs mounted on /sys/kernel/config"
            ) from error
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise ConfigurationError(
                    "nothing provides reports: load the module tdx_guest, inside a TDX guest"
                ) from error
            raise refused_by_kernel(error, "no report can be opened") from error
        return path

    def _close(self, report: str) -> None:
        try:
            self._files.remove_directory(report)
        except OSError as error:
            raise refused_by_kernel(error, "a report cannot be removed") from error

    def _ask(self, report: str, report_data: bytes) -> bytes:
        self._require_provider(report)
        before = self._generation(report)
        self._files.write(f"{report}/inblob", report_data)
        quote = self._files.read(f"{report}/outblob", _MAX_QUOTE_BYTES)
        if self._generation(report) != before + 1:
            raise _Overtaken
        require_quote(quote, report_data)
        return quote

    def _require_provider(self, report: str) -> None:
        found = self._files.read(f"{report}/provider", _MAX_TEXT_BYTES).strip()
        if found != PROVIDER.encode():
            raise ConfigurationError(
                f"reports of this machine do not come from {PROVIDER}: it is no TDX guest"
            )

    def _generation(self, report: str) -> int:
        text = self._files.read(f"{report}/generation", _MAX_TEXT_BYTES).strip()
        if not text.isdigit():
            raise Unavailable("the kernel's count of requests is no number")
        return int(text)


def require_quote(quote: bytes, report_data: bytes) -> TdBody10:
    """
    Return the body of `quote`, which is over exactly `report_data`; nothing of it is verified.

    Raises `Unavailable` for anything else.
    """
    try:
        body = parse_quote(quote).body
    except FormatError as error:
        raise Unavailable("what came for a quote is none") from error
    if body.report_data != report_data:
        raise Unavailable("the quote is over other report data than was asked for")
    return body


class TdxGuest:
    """
    The port `QuoteSource` over a `quoter`, RTMR3 in sysfs and a firmware log.

    One lock holds for a quote together with its log, and for an extension together with its check.
    """

    def __init__(
        self, quoter: Callable[[bytes], bytes], register: RtmrRegister, firmware_log: bytes
    ) -> None:
        self._quoter = quoter
        self._register = register
        self._firmware_log = firmware_log
        # Of threads: a cancelled call goes on in its thread, and still excludes the next.
        self._lock = threading.Lock()

    async def quote(self, report_data: bytes) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
        """Return a quote over `report_data` and the log that it has to be read with."""
        return await asyncio.to_thread(self._quote, report_data)

    def _quote(self, report_data: bytes) -> tuple[bytes, tuple[RuntimeEvent, ...]]:
        with self._lock:
            quote = self._quoter(report_data)
            body = require_quote(quote, report_data)
            if body.rtmr[3] != self._register.value:
                raise Unavailable("the quoted RTMR3 is not that of this node's log")
            return quote, self._register.events

    async def extend(self, event: RuntimeEvent) -> None:
        """Extend RTMR3 and append to the log, or do neither."""
        await asyncio.to_thread(self._extend, event)

    def _extend(self, event: RuntimeEvent) -> None:
        with self._lock:
            self._register.extend(event)

    def firmware_log(self) -> bytes:
        """Return the CCEL of this boot."""
        return self._firmware_log


def open_tdx_guest(
    files: AttributeFiles,
    *,
    name: str,
    places: TdxPlaces | None = None,
    log: Sequence[RuntimeEvent] = (),
    pause: Callable[[float], None] = time.sleep,
) -> TdxGuest:
    """
    Return the guest that this machine is; makes no quote yet.

    `log` is what was extended into RTMR3 before, where somebody knows it. Raises
    `ConfigurationError` where the machine lacks something, in words that say what.
    """
    where = places or TdxPlaces()
    quotes = TsmQuotes(files, name=name, reports=where.reports, pause=pause)
    quotes.require_provider()
    if not files.exists(where.measurements):
        raise ConfigurationError(
            "RTMR3 cannot be extended from here: that needs kernel 6.16 or later in the guest; a "
            "node that cannot measure itself is believed by nobody"
        )
    register = RtmrRegister(files, folder=where.measurements, log=log)
    firmware_log = read_ccel(files, table=where.ccel_table, data=where.ccel_data)
    require_replay(firmware_log, read_registers(files, where.measurements))
    return TdxGuest(quotes.quote, register, firmware_log)
