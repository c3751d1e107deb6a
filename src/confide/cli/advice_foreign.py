"""What to do about a refusal that only other people's services, and policies about them, have."""

from __future__ import annotations

from typing import Final

from confide.errors import Reason

__all__ = ["FOREIGN_ADVICE"]

_R = Reason
FOREIGN_ADVICE: Final[tuple[tuple[tuple[Reason, ...], str], ...]] = (
    (
        (_R.TOKEN_KID_UNKNOWN,),
        (
            "The key that signed the token is not at hand. NVIDIA's keys change daily: keep the "
            "key set together with the token, or ask for a fresh token."
        ),
    ),
    (
        (_R.TOKEN_EXPIRED,),
        (
            "The token of NVIDIA's service does not hold at the time used. Check the clock (or "
            "--at), or ask for a fresh token."
        ),
    ),
    (
        (_R.TOKEN_NONCE_MISMATCH, _R.TOKEN_DIGEST_MISMATCH, _R.TOKEN_SUBMODS_MISMATCH),
        (
            "The token belongs to another question or to other devices. Do not trust it, and ask "
            "again with a nonce of your own."
        ),
    ),
    (
        (_R.TOKEN_ERROR_DETAILS, _R.TOKEN_OVERALL_FALSE, _R.TOKEN_CLAIMS),
        (
            "NVIDIA's service did not find these devices good. Appraise their reports here "
            "(confide verify) to learn which check fails."
        ),
    ),
    (
        (
            _R.TOKEN_MALFORMED,
            _R.TOKEN_ALG,
            _R.TOKEN_SIGNATURE_INVALID,
            _R.TOKEN_ISSUER,
        ),
        (
            "NVIDIA's service did not sign this. A token that a machine makes for itself proves "
            "nothing; do not send anything on its word."
        ),
    ),
    (
        (_R.BUNDLE_FORMAT,),
        (
            "This is no whole bundle of confide capture: it was cut, edited or converted. Copy it "
            "byte for byte, or capture again."
        ),
    ),
    (
        (_R.POLICY_FORMAT,),
        (
            "Mend the policy file; the message names the place. confide policy show strict writes "
            "one out in full, and docs/protocols/policy.md says what each field takes."
        ),
    ),
    (
        (_R.COLLATERAL_FORMAT,),
        (
            "What stands for Intel's statements is not in their format. Pass a bundle of confide "
            "capture or the collateral file as it was fetched, or ask Intel (--fetch)."
        ),
    ),
    (
        (_R.SERVICE_FORMAT,),
        (
            "The document is not what its format says. Fetch it again without anything in between "
            "that rewrites it (confide capture), or name another --format."
        ),
    ),
    (
        (_R.RESPONSE_SIGNATURE,),
        (
            "This answer is not signed, as these exact bytes, by a key that the evidence binds. "
            "Keep the raw bytes of request and response, and take report and signature from one "
            "node with one signing algorithm; else treat the answer as anybody's."
        ),
    ),
    (
        (_R.KEY_MISMATCH,),
        (
            "A key that was presented, or the connection, is not the attested one: somebody may "
            "be in between. Encrypt nothing to it."
        ),
    ),
    (
        (_R.PROVENANCE_MISSING,),
        (
            "Nobody shows who built an image. Give the Sigstore bundle of its publisher, or "
            "accept the claim as not proven on purpose."
        ),
    ),
    (
        (_R.PROVENANCE_INVALID,),
        (
            "A Sigstore bundle is not about this image, or not from the builder that you named. "
            "Compare the identity in your policy with the publisher's; do not loosen it to match."
        ),
    ),
    (
        (_R.CERT_TIME,),
        (
            "A certificate of AMD is not valid at the time used: a key that an operator loaded "
            "(VLEK) lives one year. Check the clock (or --at) and ask for the current certificate."
        ),
    ),
    (
        (_R.TCB_MISMATCH, _R.CHIP_ID, _R.SIGNING_KEY_TYPE, _R.PRODUCT_MISMATCH),
        (
            "The certificate is not the one of this machine at the firmware it reports. Fetch the "
            "one for the chip id and the reported TCB of this report; if it still differs, the "
            "report is forged."
        ),
    ),
    (
        (
            _R.TCB_FLOOR,
            _R.PRODUCT_NOT_ALLOWED,
            _R.VLEK_NOT_ALLOWED,
            _R.VMPL,
            _R.GUEST_POLICY,
            _R.PLATFORM_INFO,
            _R.MIGRATION_AGENT,
            _R.HOST_DATA_MISMATCH,
            _R.ID_KEY_MISMATCH,
        ),
        (
            "The machine is genuine, but not as your policy wants it: firmware, processor, key or "
            "configuration. Use another machine, or review and change the policy on purpose "
            "(confide policy explain shows what it accepts)."
        ),
    ),
    (
        (_R.DEBUG,),
        (
            "The host may read the memory of this guest: nothing in it is private. Do not send "
            "anything to it."
        ),
    ),
)
