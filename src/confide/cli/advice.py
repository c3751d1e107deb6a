"""What to do about a refusal, for every reason. Advice never says "accept it anyway"."""

from __future__ import annotations

from typing import Final

from confide.cli.advice_broker import BROKER_ADVICE
from confide.cli.advice_data import DATA_ADVICE
from confide.cli.advice_foreign import FOREIGN_ADVICE
from confide.cli.advice_log import LOG_ADVICE
from confide.cli.advice_relay import RELAY_ADVICE
from confide.cli.advice_state import STATE_ADVICE
from confide.cli.advice_training import TRAINING_ADVICE
from confide.errors import Reason

__all__ = ["advice_for"]

_R = Reason
_GENUINE = (
    "The evidence is not what genuine, patched hardware signs. Do not send anything to this node; "
    "ask its operator for one on healthy hardware."
)
_MALFORMED = (
    "What was presented is cut, changed or not of its format; nothing in it was believed. Get it "
    "again, byte for byte as it was made (confide capture)."
)
_GROUPS: Final[tuple[tuple[tuple[Reason, ...], str], ...]] = (
    (
        (
            _R.SIMULATED_NOT_ALLOWED,
            _R.ROOT_MISMATCH,
            _R.CHAIN_UNTRUSTED_ROOT,
        ),
        (
            "The Expectation and the roots at hand are not the same. Simulated evidence is "
            "accepted only when you pass its roots (--simulated-roots, --roots), and only for "
            "testing."
        ),
    ),
    (
        (
            _R.COLLATERAL_EXPIRED,
            _R.COLLATERAL_AGE,
            _R.COLLATERAL_NOT_YET_VALID,
            _R.CRL_EXPIRED,
            _R.CRL_NOT_YET_VALID,
            _R.CRL_AGE_FLOOR,
            _R.CERT_EXPIRED,
            _R.CERT_NOT_YET_VALID,
            _R.CHAIN_EXPIRED,
            _R.OCSP_STALE,
            _R.OCSP_UNAVAILABLE,
            _R.RIM_EXPIRED,
            _R.RIM_NOT_YET_VALID,
            _R.EVIDENCE_STALE,
            _R.TCB_EVAL_FLOOR,
        ),
        (
            "Something is too old or not yet valid at the time used. Check the clock (or --at); a "
            "running node has to fetch fresh endorsements: confide down, then try again."
        ),
    ),
    (
        (
            _R.TCB_STATUS,
            _R.PLATFORM_NOT_ALLOWED,
            _R.DYNAMIC_PLATFORM,
            _R.VERSION_NOT_ALLOWED,
            _R.MODE_MISMATCH,
            _R.MRSEAM_NOT_ALLOWED,
            _R.TOPOLOGY_COUNT,
            _R.MROWNER_MISMATCH,
        ),
        (
            "The hardware is genuine, but not as your Expectation wants it. Use another node, or "
            "review and change the Expectation on purpose (confide expect diff shows what a "
            "change means)."
        ),
    ),
    (
        (_R.PDI_MISMATCH, _R.TOPOLOGY_PDI_MISMATCH, _R.TOPOLOGY_SWITCH_UNLOCKED),
        "The devices are not one closed system. Ask the operator for evidence of all of them.",
    ),
    (
        (
            _R.NODE_SOFTWARE_MISMATCH,
            _R.MRTD_MISMATCH,
            _R.MRCONFIGID_MISMATCH,
            _R.RTMR0_MISMATCH,
            _R.RTMR1_MISMATCH,
            _R.RTMR2_MISMATCH,
        ),
        (
            "The node runs other software than the Expectation names. After an upgrade of "
            "Confide: confide down, then try again; with your own Expectation, make it anew and "
            "compare."
        ),
    ),
    (
        (
            _R.AGENT_IMAGE_MISMATCH,
            _R.IMAGE_FORMAT,
        ),
        (
            "The agent image is not the one named. Build it again (confide build) and compare "
            "digests; an Expectation names exactly one."
        ),
    ),
    (
        (
            _R.COMPOSE_HASH_MISMATCH,
            _R.HOST_DATA_MISMATCH,
            _R.OS_IMAGE_HASH,
        ),
        (
            "The machine was started with another app or another system image than the document "
            "or the policy names. Compare what the operator published with what you list, byte by "
            "byte."
        ),
    ),
    (
        (_R.MODEL_MISMATCH,),
        (
            "Another model, or other weights, than the Expectation names, or than the training "
            "record beside it made. Compare the digests (confide expect show); changed weights "
            "need a restart: confide down, then try again."
        ),
    ),
    (
        (_R.CLAIM_NOT_PROVEN,),
        (
            "Something is not proven, and the Expectation does not say that it may be. Name the "
            "claim in hardware.accept_not_proven only if you can live without it."
        ),
    ),
    (
        (_R.EXPECTATION_MISMATCH,),
        "Two different Expectations. Compare them: confide expect diff A B.",
    ),
    (
        (
            _R.GPU_MISSING,
            _R.EVIDENCE_MISSING,
            _R.COLLATERAL_MISSING,
            _R.CRL_MISSING,
            _R.RIM_MISSING,
        ),
        (
            "Evidence is absent, and absent is refused. Use a node that has it; a receipt gets its "
            "log proof with confide log add."
        ),
    ),
    (
        (
            _R.NONCE_MISMATCH,
            _R.OCSP_NONCE_MISMATCH,
            _R.REPLAYED,
            _R.REPORT_DATA_MISMATCH,
            _R.STATEMENT_MISMATCH,
            _R.CLAIM_MISMATCH,
            _R.KEYSET_MISMATCH,
            _R.AK_BINDING,
        ),
        (
            "The answer belongs to another question, another key or another run. Something "
            "between you and the node, or the node itself, is not honest; do not trust the "
            "result."
        ),
    ),
    (
        (
            _R.KEYSET_EXPIRED,
            _R.KEYSET_REVOKED,
        ),
        "The node's keys are out of date. Restart it: confide down, then try again.",
    ),
    (
        (_R.RUN_FAILED,),
        (
            "The run did not complete, and the receipt says so. What the agent printed says why; "
            "its outputs are not verified results."
        ),
    ),
    (
        (_R.OUTPUT_MISMATCH,),
        (
            "The files at hand are not those of the run. Point --outputs at the untouched output "
            "directory, with nothing added and nothing missing."
        ),
    ),
    (
        (
            _R.RECEIPT_SIGNATURE,
            _R.TRANSCRIPT_BROKEN,
            _R.RECEIPT_MISSING,
            _R.RECEIPT_NOT_REFERENCED,
        ),
        ("The receipt was changed after it was issued, or is not of this run. Get the original."),
    ),
    (
        (_R.RECEIPT_FORMAT,),
        (
            "This is not a complete receipt file, or the node answered something else. Check the "
            "path; a receipt must be copied as it is."
        ),
    ),
    (
        (_R.LIMIT_EXCEEDED,),
        (
            "A limit of the Expectation was passed. Send less, or raise the limit in agent.toml "
            "([limits]) and make the Expectation anew."
        ),
    ),
    (
        (_R.NODE_BUSY,),
        "The node is busy. Try again in a moment.",
    ),
    (
        (_R.SESSION_UNKNOWN,),
        (
            "The session is over: it reached limits.wall_seconds, or the node restarted. "
            "Start a new one."
        ),
    ),
    (
        (_R.AGENT_FORMAT,),
        "Mend agent.toml or the agent folder; the message names the place.",
    ),
    (
        (_R.LOCK_FORMAT,),
        "Make the lock again with hashes (pip-compile --generate-hashes).",
    ),
    (
        (_R.IMAGE_NOT_PINNED,),
        ("Name the image by digest: name@sha256:<digest>. A tag names whatever was pushed last."),
    ),
    (
        (_R.FILE_NAME,),
        "Rename the file: plain relative names without control characters or backslashes.",
    ),
    (
        (
            _R.CHANNEL_TRUNCATED,
            _R.CHANNEL_FORMAT,
            _R.CHANNEL_OPEN,
            _R.STREAM_FORMAT,
        ),
        (
            "The sealed answer was cut or changed on its way. Nothing of it is used; try again, "
            "and look at the node's log (confide status)."
        ),
    ),
    (
        (_R.REQUEST_TIME,),
        "The clocks differ too much. Set this machine's clock.",
    ),
    (
        (
            _R.REQUEST_FORMAT,
            _R.UPSTREAM_FORMAT,
            _R.PROXY_FORMAT,
        ),
        (
            "The model call was not answered as it should be. Look at the node's log (confide "
            "status)."
        ),
    ),
    (
        (_R.NODE_ROLE_MISMATCH,),
        "This is the other kind of node. Check the URL.",
    ),
    (
        (
            _R.LOG_FORMAT,
            _R.LOG_TRUNCATED,
            _R.LOG_REGISTER,
            _R.RTMR3_MISMATCH,
            _R.DIGEST_MISMATCH,
            _R.PREIMAGE_MISMATCH,
            _R.RUNTIME_EVENT_TYPE,
            _R.EVENT_ORDER,
            _R.EVENT_DUPLICATE,
            _R.EVENT_MISSING,
            _R.EVENT_UNKNOWN,
        ),
        (
            "The node's log does not match what its hardware measured: it was edited, or "
            "something unmeasured ran. Do not send anything to this node."
        ),
    ),
    *FOREIGN_ADVICE,
    *LOG_ADVICE,
    *RELAY_ADVICE,
    *BROKER_ADVICE,
    *STATE_ADVICE,
    *TRAINING_ADVICE,
    *DATA_ADVICE,
)
_ADVICE: Final = {reason: text for reasons, text in _GROUPS for reason in reasons}


def advice_for(reason: Reason, *, malformed: bool = False) -> str:
    """
    Return what to do about `reason`.

    All that is not listed says: not genuine hardware. Of what is `malformed` nothing is known about
    hardware, so it says: not what was made.
    """
    return _ADVICE.get(reason, _MALFORMED if malformed else _GENUINE)
