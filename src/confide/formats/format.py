"""What a reader of one format of evidence is: recognise, plan the requests, read. Pure.

Clauses: docs/protocols/services.md §3. A reader recomputes what it can from the documents (report
data, digests) and believes nothing; it never verifies hardware signatures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from confide.rats import Finding
    from confide.wire.service import Capture, Evidence

__all__ = ["Format", "Request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    One HTTP request that a live capture makes.

    `document` names where the answer's body goes in `Capture.documents`; `path` starts with `/`
    and may hold a query. `max_bytes` bounds the body. With `keeps_query` the query of the URL that
    the user gave goes along (a model's id, for instance): members that `path` sets win over the
    user's, members in `defaults` stand where the user has none. The document of an `optional`
    request may be absent: an answer 404 or 405 is no failure.
    """

    document: str
    path: str
    method: str = "GET"
    body: bytes = b""
    content_type: str = ""
    max_bytes: int = 4 << 20
    keeps_query: bool = False
    defaults: tuple[tuple[str, str], ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """
    One format.

    `recognise` looks at the exact bytes of the first document and says whether it is of this
    format, never more. `plan` returns the requests of a live capture for a 32-byte nonce; None
    where the format is never served (`bare` quotes). `read` raises `FormatError` for documents
    that are not of the format, `Unsupported` for a version or TEE that is not judged here.

    `answer` judges the service's signature over one answer (documents beside the report) and
    returns one finding: PASS, FAIL, or NOT_PROVEN where no such documents were presented; None
    where the format has no such signature. The finding's `subject` is the name of the attester
    whose key signed (the first attester where none did): a PASS is worth what that attester's
    claim `keys` is worth.
    """

    name: str
    title: str
    recognise: Callable[[bytes], bool]
    read: Callable[[Capture], Evidence]
    plan: Callable[[bytes], tuple[Request, ...]] | None = None
    answer: Callable[[Capture, Evidence], Finding] | None = None
