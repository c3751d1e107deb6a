"""A tuned model served with the record of its training: docs/protocols/weights.md §9.

The node does not verify the record. Whoever is given it does (training-record.md §6), and holds it
to the receipts of this node. What is found here is that directory and record belong together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from confide.errors import ConfigurationError, FormatError, Reason, RunRefused
from confide.rats import Finding, Status
from confide.training.record_file import parse_record_file
from confide.training.record_parse import parse_training_record

if TYPE_CHECKING:
    from confide.inference.models import ServedModel

__all__ = ["with_record"]


def with_record(served: ServedModel, raw: bytes) -> ServedModel:
    """
    Return `served` with the training record file `raw`, of which it is the output.

    Raises `ConfigurationError` for what is no record, `RunRefused` (MODEL_MISMATCH) where the
    weights that were measured are not those that it says were made.
    """
    try:
        file = parse_record_file(raw)
        made = parse_training_record(file.record.payload).outputs["merged"].hex()
    except FormatError as error:
        raise ConfigurationError(f"--record: {error.what}") from error
    if served.manifest_digest != made:
        measured = served.manifest_digest or "not measured"
        finding = Finding(
            Status.FAIL,
            "weights/9",
            "docs/protocols/weights.md#9.3",
            "weights",
            f"served weights differ from trained: {measured}, and the record made {made}",
            Reason.MODEL_MISMATCH,
        )
        raise RunRefused((finding,))
    return replace(served, record=raw, record_digest=file.record.digest.hex())
