"""The ports: Protocols only. `adapters/` makes them real, `simulator/` makes them byte-exact fakes.

Everything here is asynchronous or instantaneous; an implementation that blocks runs in a worker
thread of its own. An edge that fails raises `Unavailable`; it never answers with a default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from confide.wire.evidence import DeviceEvidence, GpuEndorsements
    from confide.wire.rtmr_log import RuntimeEvent


class Clock(Protocol):
    """The time of the rim."""

    def now(self) -> datetime:
        """Return the current time, aware, in UTC."""
        ...


class Entropy(Protocol):
    """The randomness of the rim."""

    def token(self, size: int) -> bytes:
        """Return `size` bytes fit for keys and nonces."""
        ...


class QuoteSource(Protocol):
    """A TDX guest: quotes, and the one register that software may extend."""

    async def quote(self, report_data: bytes) -> bytes:
        """Return a quote over exactly these 64 bytes."""
        ...

    async def extend(self, event: RuntimeEvent) -> None:
        """Extend RTMR3 with `event` and append it to the runtime log, or do neither."""
        ...

    def runtime_log(self) -> tuple[RuntimeEvent, ...]:
        """Return every event extended so far, in order."""
        ...

    def firmware_log(self) -> bytes:
        """Return the CCEL: the boot's own log of RTMR0 to RTMR2."""
        ...


class GpuEvidenceSource(Protocol):
    """The confidential GPUs of this machine."""

    async def collect(self, nonce: bytes) -> tuple[DeviceEvidence, ...]:
        """Return one signed report with its chain for each device, all over this 32-byte nonce."""
        ...


class CollateralSource(Protocol):
    """Intel's statements about a platform: TCB info, QE identity, CRLs."""

    async def collateral(self, quote: bytes) -> bytes:
        """Return the collateral JSON for the platform that signed `quote`."""
        ...


class ReferenceSource(Protocol):
    """NVIDIA's statements about a device: reference manifests and certificate status."""

    async def endorsements(self, devices: tuple[DeviceEvidence, ...]) -> GpuEndorsements:
        """Return the manifests and OCSP answers that appraising `devices` needs."""
        ...
