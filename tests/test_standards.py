"""docs/standards.md names modules that exist and clauses of our own that are written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "standards.md").read_text("utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|"))
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| Document")
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_a_row_names_document_clause_module_and_status(row: tuple[str, ...]) -> None:
    document, clauses, modules, status = row
    assert document
    assert clauses
    assert status
    paths = re.findall(r"`([a-z0-9_/]+\.py)`", modules)
    assert paths, "a row names at least one module"
    for path in paths:
        assert (ROOT / "src" / "confide" / path).is_file(), f"{path} is gone"


def test_the_protocol_notes_it_cites_exist() -> None:
    for path in re.findall(r"docs/[a-z0-9_/-]+\.md", TEXT):
        assert (ROOT / path).is_file(), path


def test_every_parser_of_a_foreign_format_has_a_row() -> None:
    # The shapes of our own making, and what they stand on.
    own = {
        *("__init__", "reader", "frames", "evidence", "endorsements", "service", "keyset"),
        *("directory", "faces", "packed"),
        *(
            "bundle",
            "certificate_key",
            "pcs",
            "snp_names",
            "snp_tcb",
            "release_receipt",
            "quantisation",
        ),
    }
    named = set(re.findall(r"`wire/([a-z0-9_]+)\.py`", TEXT))
    there = {path.stem for path in (ROOT / "src" / "confide" / "wire").glob("*.py")}
    assert there - own <= named, f"no row: {sorted(there - own - named)}"
