"""Training records of either kind, told apart by what they say they are. Pure.

docs/protocols/training-image.md 5.1. Whoever needs one kind asks for that one: `verify_record`
refuses an artefact-level record, `verify_image_record` a step-level one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from confide.errors import FormatError, Reason
from confide.training.image_parse import parse_image_record
from confide.training.image_record import ImageRecord
from confide.training.image_verify import VerifiedImageRecord, verify_image_record
from confide.training.record import TrainingRecord
from confide.training.record_parse import parse_training_record
from confide.training.record_verify import VerifiedRecord, verify_record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from confide.expectation import Expectation
    from confide.training.record_file import RecordFile
    from confide.trust.roots import Roots

__all__ = ["AnyRecord", "AnyVerified", "parse_any_record", "verify_any_record"]

AnyRecord: TypeAlias = TrainingRecord | ImageRecord
AnyVerified: TypeAlias = VerifiedRecord | VerifiedImageRecord


def parse_any_record(payload: bytes) -> AnyRecord:
    """Parse a record of either kind. Raises the `FormatError` of the kind that it says it is."""
    return parse_image_record(payload) if _is_image(payload) else parse_training_record(payload)


def _is_image(payload: bytes) -> bool:
    try:
        parse_training_record(payload)
    except FormatError as error:
        return error.reason is Reason.TRAINING_GRANULARITY
    return False


def verify_any_record(
    file: RecordFile,
    *,
    roots: Roots,
    now: datetime | None,
    expectation: Expectation | None,
    nonce: bytes | None,
    outputs: Mapping[str, bytes],
) -> AnyVerified:
    """
    Verify a record of the kind that it says it is; arguments and errors are those of the two.

    The type of the result says which: what is proven differs.
    """
    verify = verify_image_record if _is_image(file.record.payload) else verify_record
    return verify(file, roots=roots, now=now, expectation=expectation, nonce=nonce, outputs=outputs)
