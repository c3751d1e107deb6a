"""Documents held to a receipt or a training record (`--with`), and how the walk looks.

Each is verified by itself first, under the roots of the document that it is held to; what it is
stands in the document and decides nothing else. Contacts nobody.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from confide.cli.places import read_start
from confide.cli.screen import fields, heading, printable
from confide.errors import ConfigurationError
from confide.receipts.file import parse_receipt_file
from confide.receipts.inference_file import parse_inference_file, verify_inference_file
from confide.receipts.statement import parse_run_statement
from confide.receipts.verify import verify_receipt
from confide.training.inclusion import MAX_PROOF_BYTES, parse_dataset_proof
from confide.training.lineage import Served
from confide.training.record_file import parse_record_file
from confide.training.record_verify import verify_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import RenderableType

    from confide.training.inclusion import DatasetProof
    from confide.training.lineage import Link
    from confide.training.record_file import RecordFile
    from confide.training.record_verify import VerifiedRecord
    from confide.trust.roots import Roots
    from confide.wire.json import JsonValue
    from confide.wire.tlog_proof import TlogProof

__all__ = ["Beside", "lineage_document", "lineage_screen", "read_beside", "verify_beside"]

# Above the bound of every other document.
_MAX_BYTES = MAX_PROOF_BYTES
_ROW_CHARS = 400


@dataclass(frozen=True, slots=True)
class Beside:
    """
    What was given beside a document: receipts and records, verified; proofs of rows, not yet.

    `proofs` are what the files of `records` hold of a log, in their order, not verified.
    """

    served: tuple[Served, ...] = ()
    records: tuple[VerifiedRecord, ...] = ()
    proofs: tuple[TlogProof | None, ...] = ()
    rows: tuple[DatasetProof, ...] = ()


def read_beside(paths: Sequence[Path]) -> tuple[bytes, ...]:
    """Read the documents at `paths`. Raises `ConfigurationError`."""
    found = []
    for path in paths:
        raw = read_start(path, "document", _MAX_BYTES)
        if len(raw) > _MAX_BYTES:
            raise ConfigurationError(f"document {path} is larger than {_MAX_BYTES} bytes")
        found.append(raw)
    return tuple(found)


def verify_beside(documents: Sequence[bytes], roots: Roots) -> Beside:
    """Verify `documents`, in their order. Raises `Rejected`, `FormatError`."""
    served: list[Served] = []
    records: list[VerifiedRecord] = []
    proofs: list[TlogProof | None] = []
    rows: list[DatasetProof] = []
    for raw in documents:
        if b'"confide/dataset-proof/v1"' in raw:
            rows.append(parse_dataset_proof(raw))
        elif b'"confide/training-record/v1"' in raw:
            file = parse_record_file(raw)
            records.append(_record(file, roots))
            proofs.append(file.log)
        elif b'"confide/inference-receipt/v1"' in raw:
            served.append(_answer(raw, roots))
        else:
            served.append(_run(raw, roots))
    return Beside(tuple(served), tuple(records), tuple(proofs), tuple(rows))


def lineage_screen(links: Sequence[Link], rows: Sequence[DatasetProof]) -> list[RenderableType]:
    """Return the walk, and the rows that were opened."""
    walk = [
        (each.kind, each.digest.hex() + (f"  {printable(each.note)}" if each.note else ""))
        for each in links
    ]
    parts: list[RenderableType] = [
        heading("Lineage", "each named by one above it"),
        fields(walk),
    ]
    for proof in rows:
        if proof.opening is not None:
            text = json.dumps(proof.opening.row, ensure_ascii=False)
            parts += [
                heading(f"Row {proof.index + 1:,}", "private: whoever has the proof reads it"),
                Text(f"  {printable(text, max_chars=_ROW_CHARS)}"),
            ]
    return parts


def lineage_document(links: Sequence[Link]) -> list[JsonValue]:
    """Return the walk for programs."""
    return [{"kind": each.kind, "digest": each.digest.hex()} for each in links]


def _record(file: RecordFile, roots: Roots) -> VerifiedRecord:
    return verify_record(file, roots=roots, now=None, expectation=None, nonce=None, outputs={})


def _answer(raw: bytes, roots: Roots) -> Served:
    file = parse_inference_file(raw)
    verified = verify_inference_file(file, roots=roots, now=file.proven_at, expectation=None)
    return Served("answer", file.envelope.digest, verified.expectation)


def _run(raw: bytes, roots: Roots) -> Served:
    file = parse_receipt_file(raw)
    run = verify_receipt(
        file,
        roots=roots,
        now=parse_run_statement(file.run.payload).finished,
        expectation=None,
        nonce=None,
        outputs=None,
    )
    return Served("agent run", run.digest, run.expectation)
