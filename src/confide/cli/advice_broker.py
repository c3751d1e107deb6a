"""What to do where a key broker refuses; `cli/advice.py` adds it to its own."""

from __future__ import annotations

from typing import Final

from confide.errors import Reason

__all__ = ["BROKER_ADVICE"]

_R = Reason
BROKER_ADVICE: Final[tuple[tuple[tuple[Reason, ...], str], ...]] = (
    (
        (_R.VAULT_FORMAT,),
        (
            "The store is not as the broker left it: it is damaged, or somebody else wrote to its "
            "database. Find out who can, keep the database as it is for that, and restore the "
            "newest backup into a new store (confide broker restore)."
        ),
    ),
    (
        (_R.BROKER_FORMAT,),
        (
            "This is no answer of the broker that you know. Compare the URL and the broker's key "
            "(--broker-key) with what its operator told you."
        ),
    ),
    (
        (_R.RELEASE_FORMAT,),
        (
            "This is no statement that the broker takes, or it is one to another broker, or the "
            "value or policy beside it is another one. Make it anew (confide secret)."
        ),
    ),
    (
        (_R.OWNERS_MISMATCH,),
        (
            "Other owners decide about this repository than was assumed: they changed, or the "
            "configuration of the broker says something else than its store. Make the statement "
            "anew; an operator compares the owners file."
        ),
    ),
    (
        (_R.OWNER_SIGNATURE,),
        (
            "Somebody signed who is no owner, or something else was signed. Take the statement as "
            "it was made (--out) and have the owners alone sign it (confide secret sign)."
        ),
    ),
    (
        (_R.OWNER_THRESHOLD,),
        (
            "Too few owners signed. Write the statement with --out FILE, have the others sign the "
            "same file (confide secret sign FILE --key K), then confide secret send FILE."
        ),
    ),
    (
        (_R.RESOURCE_UNKNOWN,),
        (
            "Nothing is held under this name and version. confide secret ls shows what is, confide "
            "secret put REPOSITORY/secret/NAME --from FILE puts a value there."
        ),
    ),
    (
        (_R.RELEASE_MISSING, _R.RELEASE_EXPIRED, _R.RELEASE_REVOKED),
        (
            "No release holds for this. The owners decide: confide secret release names the "
            "resource and the Expectation; one that ended or was revoked does not come back. On "
            "local nodes you are the owner: confide run --release signs one."
        ),
    ),
    (
        (_R.RELEASE_PENDING, _R.RELEASE_NOT_YET),
        (
            "A release is there and does not hold yet: it waits for the log, or for its first day "
            "(confide secret ls). Try again then."
        ),
    ),
)
