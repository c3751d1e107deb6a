"""Init-data of Confidential Containers: the TOML that says what the guest's agents are told.

Source: confidential-containers/trustee kbs/docs/initdata.md (version 0.1.0). The hardware holds
the hash of the exact bytes; only the algorithm has to be read out of them. Hostile until the hash
was compared. Nothing in it is secret.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.errors import FormatError, Reason
from confide.wire.toml import parse_toml

if TYPE_CHECKING:
    from confide.wire.json import JsonValue

__all__ = ["InitData", "parse_init_data"]

_WHAT: Final = "init-data"
_CLAUSE: Final = "docs/protocols/trustee.md#5"
_REASON: Final = Reason.SERVICE_FORMAT
# From: confidential-containers.md §2: all annotations of a pod together have at most 256 KiB.
_MAX_CHARS: Final = 1 << 20
_ALGORITHMS: Final = ("sha256", "sha384", "sha512")
_VERSIONS: Final = ("0.1.0",)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitData:
    """What init-data says about itself: `algorithm` is one of sha256, sha384, sha512."""

    version: str
    algorithm: str
    files: tuple[str, ...]


def parse_init_data(raw: bytes) -> InitData:
    """
    Parse the exact bytes of init-data, for its algorithm and the names of its files.

    **Does not check** that hardware names these bytes. Raises `FormatError`.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{_WHAT}: not UTF-8", reason=_REASON, clause=_CLAUSE, offset=error.start
        ) from error
    value = parse_toml(text, what=_WHAT, reason=_REASON, max_chars=_MAX_CHARS)
    version = _one_of(value.get("version"), _VERSIONS, "version")
    algorithm = _one_of(value.get("algorithm"), _ALGORITHMS, "algorithm")
    data = value.get("data", {})
    if not isinstance(data, dict) or not all(isinstance(item, str) for item in data.values()):
        raise FormatError(f"{_WHAT}: data is no table of texts", reason=_REASON, clause=_CLAUSE)
    return InitData(version=version, algorithm=algorithm, files=tuple(data))


def _one_of(value: JsonValue, allowed: tuple[str, ...], name: str) -> str:
    # From: virtee/kbs-types src/hash_algorithm.rs: names in either case.
    if isinstance(value, str) and value.lower() in allowed:
        return value.lower()
    raise FormatError(
        f"{_WHAT}: {name} is not one of {', '.join(allowed)}", reason=_REASON, clause=_CLAUSE
    )
