"""`confide verify` of evidence: load, judge, show. The screen is `service_screen`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from confide.appraisal.claim_names import ClaimName
from confide.appraisal.claim_words import WORDS
from confide.appraisal.ear import ear_document
from confide.appraisal.service import appraise_service
from confide.appraisal.tdx_policy import UnsafeAny
from confide.cli import exits
from confide.cli.policy_files import read_policy
from confide.cli.service_advice import advice_of, deciding
from confide.cli.service_screen import evidence_screen
from confide.cli.service_targets import load, service_roots
from confide.client.provenance import verify_bundles
from confide.errors import Rejected, Unavailable
from confide.version import __version__

if TYPE_CHECKING:
    from confide.appraisal.service_policy import Policy
    from confide.cli.screen import Screen
    from confide.cli.service_targets import Loaded, Options
    from confide.rats import AttestationResult
    from confide.trust.roots import Roots
    from confide.wire.json import JsonValue

__all__ = ["hold", "judge", "verify_service"]

_MAX_TOLD = 5


def judge(
    loaded: Loaded, policy: Policy, roots: Roots
) -> tuple[AttestationResult, Rejected | None]:
    """Return what is proven, and why it was refused where it was."""
    try:
        result = appraise_service(
            loaded.evidence,
            loaded.endorsements,
            policy=policy,
            roots=roots,
            now=loaded.now,
            provenance=verify_bundles(loaded.evidence, loaded.endorsements, policy),
            answer=loaded.answer,
            subject=loaded.evidence.format,
        )
    except Rejected as error:
        if error.result is None:
            raise
        return error.result, error
    return result, None


def hold(policy: Policy, roots: Roots, *, model: str = "") -> Policy:
    """
    Return `policy` with what the other options of the command say.

    Whoever names simulated roots permits them by that; whoever names a model does not tolerate
    evidence about another one.
    """
    if roots.simulated:
        policy = replace(policy, unsafe_simulated=True)
    tolerated = policy.claims.unsafe_tolerate
    if model:
        known = frozenset(ClaimName) if isinstance(tolerated, UnsafeAny) else tolerated
        kept = frozenset(str(name) for name in known) - {ClaimName.MODEL_WEIGHTS.value}
        policy = replace(policy, claims=replace(policy.claims, unsafe_tolerate=kept))
    return policy


def verify_service(
    screen: Screen, target: str, raw: bytes | None, options: Options, *, explain: bool, ear: bool
) -> int:
    """
    Verify the evidence of `target` and show what was found; return the exit code.

    Raises `FormatError`, `Unsupported`, `Unavailable`, `ConfigurationError`.
    """
    roots = service_roots(options.simulated_roots)
    policy = hold(read_policy(options.policy), roots, model=options.model)
    loaded = load(target, raw, options)
    result, refused = judge(loaded, policy, roots)
    if refused is not None and loaded.unavailable:
        _require_verdict(refused, loaded.unavailable)
    code = exits.ACCEPTED if refused is None else exits.REJECTED
    if ear:
        document = ear_document(result, accepted=refused is None, version=__version__)
        sys.stdout.write(json.dumps(document, ensure_ascii=True, indent=2) + "\n")
        return code
    if screen.as_json:
        screen.event(
            "result", _document(loaded, result, refused, policy, options.policy, explain=explain)
        )
        return code
    screen.show(
        *evidence_screen(
            loaded,
            result,
            refused,
            policy=policy,
            roots=roots,
            named=options.policy,
            explain=explain,
        )
    )
    return code


def _require_verdict(refused: Rejected, unavailable: tuple[str, ...]) -> None:
    """Raise `Unavailable` where vendors' silence is all that stands between this and a verdict."""
    # The network is loaded already: somebody was asked.
    from confide.adapters.endorse import only_missing  # noqa: PLC0415

    if only_missing(refused, unavailable):
        error = Unavailable(f"no verdict: {unavailable[0]}")
        for text in unavailable[1:_MAX_TOLD]:
            error.add_note(text)
        error.add_note("Nothing in the evidence was contradicted, and nothing is proven")
        raise error from refused


def _document(
    loaded: Loaded,
    result: AttestationResult,
    refused: Rejected | None,
    policy: Policy,
    named: str,
    *,
    explain: bool,
) -> dict[str, JsonValue]:
    problem: dict[str, JsonValue] | None = None
    if refused is not None:
        advice = tuple(advice_of(deciding(refused), named))
        problem = replace(exits.problem_of(refused), advice=advice).document()
    found: dict[str, JsonValue] = {
        "outcome": "accepted" if refused is None else "rejected",
        "exit": exits.ACCEPTED if refused is None else exits.REJECTED,
        "simulated": result.simulated,
        "format": loaded.evidence.format,
        "target": loaded.name,
        "sha256": loaded.sha256 or None,
        "live": loaded.live,
        "at": loaded.now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "policy": {
            "name": policy.name,
            "digest": policy.digest,
            "relaxations": list(policy.relaxations),
        },
        "unavailable": list(loaded.unavailable),
        "problem": problem,
        "ear": ear_document(result, accepted=refused is None, version=__version__),
    }
    if explain:
        found["explained"] = {
            claim.name: dict(WORDS[ClaimName(claim.name)]._asdict()) for claim in result.claims
        }
    return found
