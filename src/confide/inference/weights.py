"""Identity of model weights: the manifest and root digest of OpenSSF Model Signing (OMS) 1.0.

docs/protocols/weights.md §1. Method `files`, hash `sha256`: one entry a file, the root is SHA-256
over the raw digests in order. Pure: `adapters.weights_dir` reads the files, this module decides
what their digests mean. The names are the operator's; they are refused where two machines could
read them differently.

What this does not do: it does not sign; the node's evidence binds `WeightsManifest.digest`, which
covers names and contents. The OMS root alone does not cover the names: two directories whose files
were renamed without changing the order share it, as OMS defines.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from confide.wire.json import is_hex, jcs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.wire.json import JsonValue

__all__ = [
    "IGNORED_PATHS",
    "WeightsEntry",
    "WeightsManifest",
    "differences",
    "manifest_value",
    "weights_manifest",
]

# From: OMS 1.0, default ignores; at the top of the directory only
IGNORED_PATHS = (".git", ".gitattributes", ".github", ".gitignore")
# Linux PATH_MAX; a longer name cannot be opened where it would be verified.
_MAX_NAME_BYTES = 4096


@dataclass(frozen=True, slots=True)
class WeightsEntry:
    """One file: `name` relative to the directory with `/`, `sha256` in lower-case hex."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class WeightsManifest:
    """
    All files of a weights directory in OMS order, and the `root_digest` (hex) over them.

    Only `weights_manifest` makes one whose root matches its entries.
    """

    entries: tuple[WeightsEntry, ...]
    root_digest: str

    @property
    def digest(self) -> bytes:
        """
        SHA-256 over the canonical manifest, file names included: what nodes measure and prove.

        The OMS root covers contents in order, not names; this covers both (weights.md §1.7).
        """
        return hashlib.sha256(jcs(manifest_value(self))).digest()


def weights_manifest(files: Iterable[tuple[str, str]]) -> WeightsManifest:
    """
    Return the manifest of `files`, pairs of (relative name, SHA-256 in hex), in any order.

    Implements weights.md §1.3 to §1.5. Raises `ValueError` for no file at all, a name that is
    absolute, empty, climbs out, is not UTF-8 or occurs twice, and for a digest that is not one.
    """
    entries = tuple(
        sorted(
            (WeightsEntry(_valid_name(name), _valid_digest(digest)) for name, digest in files),
            # OMS says sorted by name; its reference implementation compares paths component by
            # component, and only that order gives the digests in the field: "a/b" is before "a.b".
            key=lambda entry: entry.name.split("/"),
        )
    )
    if not entries:
        raise ValueError("a weights directory holds at least one file")
    for before, after in pairwise(entries):
        if before.name == after.name:
            raise ValueError("a name occurs twice")
    root = hashlib.sha256(b"".join(bytes.fromhex(entry.sha256) for entry in entries))
    return WeightsManifest(entries, root.hexdigest())


def manifest_value(manifest: WeightsManifest) -> dict[str, JsonValue]:
    """Return the OMS predicate of `manifest` as JSON members (weights.md §1.6)."""
    return {
        "resources": [
            {"name": entry.name, "digest": entry.sha256, "algorithm": "sha256"}
            for entry in manifest.entries
        ],
        "serialization": {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": list(IGNORED_PATHS),
        },
    }


def differences(expected: WeightsManifest, found: WeightsManifest) -> tuple[str, ...]:
    """
    Return one sentence for each file that is changed, missing or new; empty when both are equal.

    Compares names and digests, not roots: a renamed file is a missing and a new one.
    """
    before = {entry.name: entry.sha256 for entry in expected.entries}
    after = {entry.name: entry.sha256 for entry in found.entries}
    told = []
    for name in sorted(before.keys() | after.keys(), key=lambda name: name.split("/")):
        if name not in after:
            told.append(f"{name!r} is missing")
        elif name not in before:
            told.append(f"{name!r} was not measured")
        elif before[name] != after[name]:
            told.append(f"{name!r} has changed")
    return tuple(told)


def _valid_name(name: str) -> str:
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError("a name is not relative to the directory")
    if "\\" in name or any(ord(char) < 0x20 or ord(char) == 0x7F for char in name):
        raise ValueError("a name holds a backslash or a control character")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise ValueError("a name is not UTF-8") from error
    if size > _MAX_NAME_BYTES:
        raise ValueError(f"a name is {size} bytes long, at most {_MAX_NAME_BYTES}")
    return name


def _valid_digest(digest: str) -> str:
    if not is_hex(digest, 32):
        raise ValueError("a digest is not SHA-256 in lower-case hex")
    return digest
