"""What decided about evidence of a service, in a few words, and what to do about it.

Advice is for the relying party, who is not the operator. It never says "accept it anyway".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.claim_words import WORDS
from confide.appraisal.service_verdict import AUTHENTICITY
from confide.cli.advice import advice_for
from confide.rats import Claim
from confide.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.errors import Rejected
    from confide.rats import Finding

__all__ = ["advice_of", "deciding", "plain"]

_R = Reason
_CLAIMS = frozenset(name.value for name in ClaimName)
# A finding that stands for a nested one repeats it: `step S fail on SUBJECT: REASON: DETAIL`.
_NESTED = re.compile(r"step (\S+) fail on \S+: (?:[a-z0-9-]+: )?(.*)\Z", re.DOTALL)
# The step that compares registers with the caller's lists.
_LISTS = "service/7"
_STRICT = (
    "The profile strict accepts nothing until you say what you expect: start from confide policy "
    "show strict, and list it. To look first: --policy audit."
)
_NO_PROCESSOR = (
    "Ask for the evidence of the processor as well: devices alone show no service, and not who is "
    "at the other end."
)
_BY_REASON = {
    reason: text
    for reasons, text in (
        (
            (_R.COLLATERAL_MISSING, _R.CRL_MISSING, _R.RIM_MISSING, _R.OCSP_UNAVAILABLE),
            (
                "The vendor's statements are not at hand: pass them (--endorsements FILE), or ask "
                "the vendors (--fetch)."
            ),
        ),
        (
            (
                _R.COLLATERAL_EXPIRED,
                _R.COLLATERAL_AGE,
                _R.COLLATERAL_NOT_YET_VALID,
                _R.CRL_EXPIRED,
                _R.CRL_NOT_YET_VALID,
                _R.CERT_EXPIRED,
                _R.CERT_NOT_YET_VALID,
                _R.CERT_TIME,
                _R.CHAIN_EXPIRED,
                _R.OCSP_STALE,
                _R.RIM_EXPIRED,
                _R.RIM_NOT_YET_VALID,
            ),
            (
                "Something is too old or not yet valid at the time used: name the time of the "
                "capture (--at TIME), or get current endorsements (--fetch)."
            ),
        ),
        (
            (
                _R.ROOT_MISMATCH,
                _R.ARK_NOT_PINNED,
                _R.CHAIN_UNTRUSTED_ROOT,
                _R.SIMULATED_NOT_ALLOWED,
            ),
            (
                "No root in use stands behind this. Simulated evidence needs its own roots, for "
                "testing alone: --simulated-roots FILE."
            ),
        ),
        (
            (_R.MODEL_MISMATCH,),
            (
                "This evidence is about another model than the one you named: capture again with "
                "the model you mean (--model NAME)."
            ),
        ),
    )
    for reason in reasons
}


def plain(item: Finding | Claim) -> tuple[str, str]:
    """Return what an item says and the step that says it, without the frame of a nested one."""
    text = item.value if isinstance(item, Claim) else item.detail
    text = text.removeprefix("required, and not proven: ")
    match = _NESTED.match(text)
    return (match.group(2), match.group(1)) if match is not None else (text, item.step)


def deciding(refused: Rejected) -> list[Finding]:
    """Return the findings that decided: those of claims, not of the steps behind them."""
    found = [
        item
        for item in refused.failures
        if item.step.startswith("service/") and item.subject.rpartition("/")[2] in _CLAIMS
    ]
    return found or list(refused.failures)


def advice_of(decided: Iterable[Finding], named: str) -> list[str]:
    """
    Return what to do, the most telling first, nothing twice.

    `named` is how the caller named the policy: the profile `strict` as it stands accepts nothing.
    """
    found: list[str] = []
    items = list(decided)
    unsigned = any(item.subject.rpartition("/")[2] == ClaimName.HARDWARE for item in items)
    for item in items:
        name = item.subject.rpartition("/")[2]
        # What no hardware vouches for is mended with the hardware, and not before.
        if not (unsigned and name != ClaimName.HARDWARE and item.reason is _R.CLAIM_NOT_PROVEN):
            found.append(_advice(item, name))
    if named == "strict":
        # First, unless not even the hardware is established.
        found.insert(1 if unsigned else 0, _STRICT)
    return list(dict.fromkeys(found))


def _advice(item: Finding, name: str) -> str:
    reason = item.reason
    if reason is None or name not in _CLAIMS:
        return advice_for(reason or _R.CLAIM_NOT_PROVEN)
    if reason in _BY_REASON:
        return _BY_REASON[reason]
    claim = ClaimName(name)
    if claim is ClaimName.HARDWARE and reason is _R.CLAIM_NOT_PROVEN:
        return _NO_PROCESSOR
    if reason is _R.CLAIM_NOT_PROVEN or item.step == _LISTS or claim not in AUTHENTICITY:
        return WORDS[claim].todo
    return advice_for(reason)
