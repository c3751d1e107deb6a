"""The artefact-level training record: which image made which weights, out of what. Value and bytes.

Clauses: docs/protocols/training-image.md §4. Pure. `issue_image_record` is the node's side,
`image_parse` and `image_verify` the verifier's. It is coarser than a `TrainingRecord`, and says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from confide.training.predicates import Descriptor, encode_hardware, encode_weights
from confide.training.record import IssuedRecord
from confide.training.record_core import RecordCore
from confide.wire.json import jcs

if TYPE_CHECKING:
    from confide.agents.sandbox import ExitKind
    from confide.inference.weights import WeightsManifest
    from confide.receipts.issue import ReceiptSigner
    from confide.training.image_recipe import ImagePlan
    from confide.training.predicates import HardwareOfBoot
    from confide.wire.json import JsonValue

__all__ = ["GRANULARITY", "IMAGE_BUILD_TYPE", "ImageRecord", "issue_image_record"]

IMAGE_BUILD_TYPE: Final = "confide:training-image/v1"
# The word with which the record itself says that it is the coarser one.
GRANULARITY: Final = "artefact"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord(RecordCore):
    """
    What an artefact-level record says; believed only inside a `VerifiedImageRecord`.

    `end` and `status` are how the image ended (sandbox.md §3). Nothing is said of steps.
    """

    plan: ImagePlan
    end: ExitKind
    status: int | None

    @property
    def main(self) -> str:
        """The directory that the image left."""
        return "output"

    def payload(self) -> bytes:
        """Return the canonical in-toto Statement."""
        ending: dict[str, JsonValue] = {"end": self.end.value, "status": self.status}
        return self.encode(
            IMAGE_BUILD_TYPE,
            internal={"granularity": GRANULARITY},
            dependencies={"image": self.plan.image},
            first=(Descriptor("exit", hashlib.sha256(jcs(ending)).digest(), ending),),
        )


def issue_image_record(
    signer: ReceiptSigner, record: ImageRecord, *, manifest: WeightsManifest, boot: HardwareOfBoot
) -> IssuedRecord:
    """
    Sign `record` and the two statements beside it; `outputs` and `statements` are filled in here.

    `manifest` is that of the directory as the node measured it, `boot` the one that began the job.
    """
    whole = replace(record, outputs={record.main: manifest.digest})
    payloads = {
        "hardware": encode_hardware(whole.main, whole.made, (boot,)),
        f"weights/{whole.main}": encode_weights(whole.main, manifest),
    }
    statements = {name: signer.seal(payload) for name, payload in payloads.items()}
    digests = {name: envelope.digest for name, envelope in statements.items()}
    return IssuedRecord(signer.seal(replace(whole, statements=digests).payload()), statements)
