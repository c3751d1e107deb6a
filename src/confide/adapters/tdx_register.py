"""RTMR3 through sysfs: extended by one write, and read back each time.

docs/protocols/hardware.md §3. Kernel 6.16 and later. The register is the truth and the log
follows it: an event is in the log exactly when the register shows that it was extended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.adapters.tsm_files import refused_by_kernel
from confide.errors import ConfigurationError, Unavailable
from confide.wire.rtmr_log import extend_register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.adapters.tsm_files import AttributeFiles
    from confide.wire.rtmr_log import RuntimeEvent

__all__ = ["MEASUREMENTS", "RtmrRegister", "read_registers"]

# From: Linux ABI testing/sysfs-devices-virtual-misc-tdx_guest.
MEASUREMENTS: Final = "/sys/devices/virtual/misc/tdx_guest/measurements"
_REGISTER_BYTES: Final = 48
_CHANGED = (
    "RTMR3 does not hold what this node extended: other software in this guest extends it too, and "
    "no evidence can be made until the machine is booted again"
)


def read_registers(files: AttributeFiles, folder: str) -> tuple[bytes, bytes, bytes, bytes]:
    """Return RTMR0 to RTMR3 as they are now. `ConfigurationError`, or `Unavailable`."""
    values = [_read(files, f"{folder}/rtmr{index}:sha384") for index in range(4)]
    return values[0], values[1], values[2], values[3]


def _read(files: AttributeFiles, path: str) -> bytes:
    name = path.rpartition("/")[2]
    try:
        value = files.read(path, _REGISTER_BYTES)
    except OSError as error:
        raise refused_by_kernel(error, f"the register {name} cannot be read") from error
    if len(value) != _REGISTER_BYTES:
        raise Unavailable(f"the register {name} has {len(value)} bytes and not {_REGISTER_BYTES}")
    return value


class RtmrRegister:
    """
    RTMR3 and the log of it. Not for two threads at once: its owner serialises.

    `log` is what was extended before, where somebody knows it.
    """

    def __init__(
        self, files: AttributeFiles, *, folder: str = MEASUREMENTS, log: Sequence[RuntimeEvent] = ()
    ) -> None:
        """Raise `ConfigurationError` where the register is not what `log` says."""
        self._files = files
        self._path = f"{folder}/rtmr3:sha384"
        self._events = list(log)
        self._expected = bytes(_REGISTER_BYTES)
        for event in log:
            self._expected = extend_register(self._expected, event.digest())
        self._lost = False
        if _read(files, self._path) != self._expected:
            raise ConfigurationError(
                "RTMR3 was extended before, and not by what the log says: a node starts in a guest "
                "that was just booted and measures nothing else into RTMR3"
            )

    @property
    def events(self) -> tuple[RuntimeEvent, ...]:
        """The log, in order."""
        return tuple(self._events)

    @property
    def value(self) -> bytes:
        """What the register has to hold."""
        return self._expected

    def extend(self, event: RuntimeEvent) -> None:
        """
        Extend by `event` and append it to the log, or do neither.

        Raises `Unavailable`; once the register holds something else than this log says, always.
        """
        if self._lost or _read(self._files, self._path) != self._expected:
            self._lost = True
            raise Unavailable(_CHANGED)
        after = extend_register(self._expected, event.digest())
        problem: OSError | None = None
        try:
            self._files.write(self._path, event.digest())
        except OSError as error:
            problem = error
        # Whatever the write said, the register says what happened.
        found = _read(self._files, self._path)
        if found == after:
            self._expected = after
            self._events.append(event)
            return
        if found != self._expected:
            self._lost = True
            raise Unavailable(_CHANGED) from problem
        if problem is not None:
            raise refused_by_kernel(problem, "RTMR3 cannot be extended") from problem
        raise Unavailable("RTMR3 took an extension and shows the same value as before")
