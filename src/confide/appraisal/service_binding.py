"""What the report data of one attester is worth: freshness, keys, the TLS connection.

Clauses: docs/protocols/services.md §5, steps 3 and 4. The reader recomputed what the service says
was hashed; the hardware's signature over it was verified before. A nonce proves freshness only
when the relying party drew it: one that came with the evidence proves nothing.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Final

from confide.appraisal.claim_names import ClaimName
from confide.reasons import Reason

if TYPE_CHECKING:
    from confide.appraisal.service_ledger import Ledger
    from confide.wire.service import Attester, Evidence

__all__ = ["judge_binding", "judge_tls"]

_STEP: Final = "service/3"
_TLS: Final = "service/4"


def judge_binding(
    attester: Attester, evidence: Evidence, *, signed: bytes | None, ledger: Ledger
) -> None:
    """
    Record `keys` and `freshness`.

    `signed` is the 64 bytes that hardware signed, None where no hardware was established.
    """
    binding = attester.binding
    if signed is None:
        ledger.open(ClaimName.KEYS, _STEP, "no hardware vouches for it")
        ledger.open(ClaimName.FRESHNESS, _STEP, "no hardware vouches for it")
        return
    if binding.expected is None:
        ledger.open(ClaimName.KEYS, _STEP, "this format says nothing about its report data")
        ledger.open(ClaimName.FRESHNESS, _STEP, "this format carries no nonce")
        return
    if not hmac.compare_digest(binding.expected, signed):
        why = f"the report data is not what {binding.scheme} makes of what was presented"
        ledger.contradicted(ClaimName.KEYS, _STEP, Reason.REPORT_DATA_MISMATCH, why)
        ledger.open(ClaimName.FRESHNESS, _STEP, why)
        return
    _record_keys(attester, ledger)
    _record_freshness(attester, evidence, ledger)


def _record_keys(attester: Attester, ledger: Ledger) -> None:
    covered = [key for key in attester.keys if key.name in attester.binding.covers]
    loose = [key.name for key in attester.keys if key.name not in attester.binding.covers]
    if not covered:
        ledger.open(ClaimName.KEYS, _STEP, "the report data covers no key")
        return
    names = ", ".join(f"{key.name} ({key.algorithm})" for key in covered)
    if loose:
        # A client that used one of these would talk to somebody else.
        why = f"report data covers {names}, and not {', '.join(loose)}"
        ledger.open(ClaimName.KEYS, _STEP, why)
        return
    ledger.proven(ClaimName.KEYS, _STEP, "hardware", names)


def _record_freshness(attester: Attester, evidence: Evidence, ledger: Ledger) -> None:
    inside, drawn = attester.binding.nonce, evidence.nonce
    if inside is None:
        ledger.open(ClaimName.FRESHNESS, _STEP, f"{attester.binding.scheme} has no nonce")
    elif drawn is None:
        ledger.open(ClaimName.FRESHNESS, _STEP, "no nonce of yours: the evidence brought its own")
    elif not hmac.compare_digest(inside, drawn):
        ledger.contradicted(
            ClaimName.FRESHNESS, _STEP, Reason.NONCE_MISMATCH, "made for another nonce than yours"
        )
    else:
        ledger.proven(ClaimName.FRESHNESS, _STEP, "hardware", f"nonce {drawn.hex()[:16]}…")


def judge_tls(attester: Attester, evidence: Evidence, *, ledger: Ledger) -> None:
    """Record `tls`: whether the connection that was observed ended in this attester."""
    seen = evidence.tls_spki_sha256
    keys = [key for key in attester.keys if key.use == "tls"]
    covered = [key for key in keys if key.name in attester.binding.covers]
    if not covered:
        ledger.open(ClaimName.TLS, _TLS, "no TLS key in the report data")
    elif seen is None:
        ledger.open(ClaimName.TLS, _TLS, "no connection of yours was seen")
    elif not any(hmac.compare_digest(key.value, seen) for key in covered):
        ledger.contradicted(
            ClaimName.TLS, _TLS, Reason.KEY_MISMATCH, "the connection ended somewhere else"
        )
    elif ledger.holds(ClaimName.KEYS):
        ledger.proven(ClaimName.TLS, _TLS, "hardware", f"SPKI {seen.hex()[:16]}…")
    else:
        ledger.open(ClaimName.TLS, _TLS, "the TLS key itself is not proven")
