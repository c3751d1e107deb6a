"""What several attesters of one service present together: one device cannot be in two machines.

Clauses: docs/protocols/services.md §5, step 9. A device is its serial
number, as nvidia.md step 14 has it; that the number is its own was verified before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.errors import FormatError, Reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from confide.appraisal.service_verdict import Judged
    from confide.wire.service import Attester

__all__ = ["judge_shared"]

_STEP: Final = "service/9"
_MAX_CERTIFICATES: Final = 10


def judge_shared(attesters: Sequence[Attester], judged: Sequence[Judged]) -> tuple[str, ...]:
    """
    Contradict `gpu` of every machine that shows a device which another one shows.

    Two attesters whose hardware signed the same report data show the same keys and the same nonce:
    that is one machine, presented twice, and is only said. Returns what there is to say.
    """
    machines: dict[bytes, str] = {}
    said = tuple(
        f"{machines[item.signed]} and {item.name} show one machine, twice"
        for item in judged
        if item.signed is not None and machines.setdefault(item.signed, item.name) != item.name
    )
    owners: dict[int, int] = {}
    shown = [(at, each.devices) for at, each in enumerate(attesters) if each.devices is not None]
    for at, devices in shown if len(shown) > 1 else ():
        for device in devices.devices:
            serial = _serial(device.chain_pem)
            first = owners.setdefault(serial, at) if serial is not None else at
            if first == at:
                continue
            one, other = judged[first], judged[at]
            if one.signed is not None and one.signed == other.signed:
                continue
            for item, elsewhere in ((one, other), (other, one)):
                why = f"a device that {elsewhere.name} shows as well"
                item.ledger.contradicted(ClaimName.GPU, _STEP, Reason.DUPLICATE_DEVICE, why)
    return said


def _serial(chain_pem: bytes) -> int | None:
    """Return the serial number of a device, which its leaf carries; None where none can be read."""
    # Loaded where several machines show devices.
    from confide.crypto.x509 import parse_pem_chain  # noqa: PLC0415

    try:
        chain = parse_pem_chain(
            chain_pem,
            max_certificates=_MAX_CERTIFICATES,
            what="device chain",
            reason=Reason.CHAIN_MALFORMED,
        )
    except FormatError:
        # Its own steps refuse it.
        return None
    return chain[0].serial
