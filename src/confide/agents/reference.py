"""Names of container images. Pure.

Only a digest names one image; a tag names whatever somebody last pushed. Grammar: OCI
distribution-spec 1.1, "Pulling manifests", restricted to what can be pinned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from confide.errors import FormatError, Reason
from confide.wire.json import is_hex

__all__ = ["PinnedReference", "parse_reference"]

_CLAUSE = "agent-image.md §5"
# From: distribution-spec 1.1 §Pulling manifests; the host part may carry a port. `_` separates and
# is part of a word: one repetition over both, because two nested ones take exponential time.
_NAME = re.compile(r"[a-z0-9]+(?:[._:/-][a-zA-Z0-9._:/-]*[a-zA-Z0-9_])?\Z")
_MAX_CHARS = 512


@dataclass(frozen=True, slots=True)
class PinnedReference:
    """
    An image by digest. `digest` is the SHA-256 of its manifest (hex, 64 characters).

    `name` is where to find it: a registry name (`docker.io/library/python`) or, with `layout`,
    the path of a local OCI layout. The digest alone decides whether what is found is right.
    """

    name: str
    digest: str
    layout: bool = False

    def __str__(self) -> str:
        return f"{'oci:' if self.layout else ''}{self.name}@sha256:{self.digest}"


def parse_reference(text: str) -> PinnedReference:
    """
    Parse `name@sha256:<hex>` or `oci:<path>@sha256:<hex>`.

    A name without a digest is refused with IMAGE_NOT_PINNED; who can look the tag up locally
    tells the digest to pin (`engine_images.describe_tag`). Raises `FormatError`.
    """
    name, at, digest = text.rpartition("@sha256:")
    if not at:
        raise FormatError(
            "image: a tag can be moved to another image; pin it as name@sha256:<digest>",
            reason=Reason.IMAGE_NOT_PINNED,
            clause=_CLAUSE,
        )
    if len(text) > _MAX_CHARS or not is_hex(digest, 32):
        raise _refusal("the digest is not 64 lower-case hex characters")
    if name.startswith("oci:"):
        path = name.removeprefix("oci:")
        if not path or not path.isprintable():
            raise _refusal("the path of the OCI layout is empty or not printable")
        return PinnedReference(path, digest, layout=True)
    if not _NAME.match(name):
        raise _refusal("the name is not a registry name")
    return PinnedReference(name, digest)


def _refusal(why: str) -> FormatError:
    return FormatError(f"image: {why}", reason=Reason.IMAGE_FORMAT, clause=_CLAUSE)
