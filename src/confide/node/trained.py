"""A tuned model served with the record of its training: docs/protocols/weights.md §9.

The node does not verify the record. Whoever is given it does (training-record.md §6), and holds it
to the receipts of this node. What is found here is that directory and record belong together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from confide.errors import ConfigurationError, FormatError, Reason, RunRefused
from confide.rats import Finding, Status
from confide.training.record_file import parse_record_file
from confide.training.record_parse import parse_training_record

if TYPE_CHECKING:
    from confide.inference.models import ServedModel

__all__ = ["TrainedWeights", "parse_trained"]


@dataclass(frozen=True, slots=True)
class TrainedWeights:
    """A training record file, its digest, and which weights it says were made. Not verified."""

    file: bytes = field(repr=False)
    digest: bytes
    merged: bytes

    def served_as(self, served: ServedModel) -> ServedModel:
        """
        Return `served` with this record.

        Raises `RunRefused` (MODEL_MISMATCH) where the weights that were measured are others.
        """
        made = self.merged.hex()
        if served.manifest_digest != made:
            finding = Finding(
                Status.FAIL,
                "weights/9",
                "docs/protocols/weights.md#9.3",
                "weights",
                f"served weights differ from trained: {served.manifest_digest}, not {made}",
                Reason.MODEL_MISMATCH,
            )
            raise RunRefused((finding,))
        return replace(served, record=self.file, record_digest=self.digest.hex())


def parse_trained(raw: bytes, *, measured: bool) -> TrainedWeights:
    """
    Parse the record file `raw`, of weights that the node measures.

    Raises `ConfigurationError` for what is no record, and where nothing is `measured`.
    """
    if not measured:
        raise ConfigurationError("--record goes with --weights: it is held to what is measured")
    try:
        file = parse_record_file(raw)
        said = parse_training_record(file.record.payload)
    except FormatError as error:
        raise ConfigurationError(f"--record: {error.what}") from error
    return TrainedWeights(raw, file.record.digest, said.outputs["merged"])
