"""
Private and verifiable AI: check before, enforce during, prove after.

Verify what a confidential AI service presents, offline::

    result = confide.verify(
        Path("bundle.json").read_bytes(),       # `confide capture URL -o bundle.json`
        confide.Endorsements(),                 # beside those in the bundle
        confide.parse_policy(Path("policy.toml").read_text()),
        now=datetime.now(UTC), nonce=nonce,     # the 32 bytes that you drew
    )
    print([(claim.name, claim.status) for claim in result.claims], result.limits)

or live, asking the vendors for what is missing::

    result = await confide.fetch_and_verify("https://…", policy, format="near")

Verify a receipt, offline::

    from datetime import UTC, datetime
    from pathlib import Path
    import confide

    run = confide.verify_receipt(
        confide.parse_receipt_file(Path("receipt.json").read_bytes()),
        roots=confide.VENDOR_ROOTS,  # or parse_roots_file(...) for a SIMULATED run
        now=datetime.now(UTC),
        expectation=confide.parse_expectation(Path("expectation.json").read_bytes()),
        nonce=None, outputs=None,
    )
    print(run.statement.result, [claim.name for claim in run.agent.result.claims])

Send nothing to a node that was not proven, with the OpenAI SDK that you have::

    client = confide.openai_client("https://node.example", policy="inference.toml")
    answer = client.chat.completions.create(model="…", messages=[…])
    print(confide.receipt_of(answer).id)

Train privately with the same SDK, and open what was made once its record holds::

    ours = confide.training_request("rows.jsonl", policy="expectation.toml", output="tuned-1")
    file = client.files.create(file=…, purpose="fine-tune", extra_body=ours.rows)
    job = client.fine_tuning.jobs.create(model="…", training_file=file.id, extra_body=ours.job)
    print(confide.open_results(client, job.id, "tuned-1").adapter)  # when it has succeeded

Raises `Rejected` with numbered findings, or `FormatError`. The names below are the public face;
running agents (`confide.client.agent`) needs the extra `client`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from confide.version import __version__

if TYPE_CHECKING:
    from confide.appraisal.policy_file import parse_policy
    from confide.appraisal.service_policy import Policy
    from confide.appraisal.service_profiles import AUDIT, STRICT
    from confide.client.openai import async_openai_client, openai_client, receipt_of, session_of
    from confide.client.train_sdk import open_results, training_request
    from confide.client.verify import fetch_and_verify
    from confide.errors import ConfideError, FormatError, Rejected
    from confide.expectation import Expectation, parse_expectation, parse_expectation_toml
    from confide.formats.verify import verify
    from confide.rats import AttestationResult
    from confide.receipts.file import parse_receipt_file
    from confide.receipts.verify import VerifiedRun, verify_receipt
    from confide.trust.roots import VENDOR_ROOTS, parse_roots_file
    from confide.wire.endorsements import Endorsements

__all__ = [
    "AUDIT",
    "STRICT",
    "VENDOR_ROOTS",
    "AttestationResult",
    "ConfideError",
    "Endorsements",
    "Expectation",
    "FormatError",
    "Policy",
    "Rejected",
    "VerifiedRun",
    "__version__",
    "async_openai_client",
    "fetch_and_verify",
    "open_results",
    "openai_client",
    "parse_expectation",
    "parse_expectation_toml",
    "parse_policy",
    "parse_receipt_file",
    "parse_roots_file",
    "receipt_of",
    "session_of",
    "training_request",
    "verify",
    "verify_receipt",
]

# Where each name lives; loaded at first use, so that importing the package costs nothing.
_HOMES = {
    "AUDIT": "confide.appraisal.service_profiles",
    "STRICT": "confide.appraisal.service_profiles",
    "Policy": "confide.appraisal.service_policy",
    "parse_policy": "confide.appraisal.policy_file",
    "AttestationResult": "confide.rats",
    "Endorsements": "confide.wire.endorsements",
    "verify": "confide.formats.verify",
    "fetch_and_verify": "confide.client.verify",
    "ConfideError": "confide.errors",
    "FormatError": "confide.errors",
    "Rejected": "confide.errors",
    "Expectation": "confide.expectation",
    "parse_expectation": "confide.expectation",
    "parse_expectation_toml": "confide.expectation",
    "parse_receipt_file": "confide.receipts.file",
    "VerifiedRun": "confide.receipts.verify",
    "verify_receipt": "confide.receipts.verify",
    "VENDOR_ROOTS": "confide.trust.roots",
    "parse_roots_file": "confide.trust.roots",
    "async_openai_client": "confide.client.openai",
    "openai_client": "confide.client.openai",
    "receipt_of": "confide.client.openai",
    "session_of": "confide.client.openai",
    "open_results": "confide.client.train_sdk",
    "training_request": "confide.client.train_sdk",
}


def __getattr__(name: str) -> object:
    """Load a public name from its home. From: PEP 562."""
    if name not in _HOMES:
        raise AttributeError(f"module 'confide' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
