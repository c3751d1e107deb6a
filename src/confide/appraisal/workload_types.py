"""What a launch document says it starts, and what it leaves open. Values only.

Clauses: docs/protocols/workload.md. `appraisal/workload.py` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confide.appraisal.claim_names import ClaimName

__all__ = ["Image", "Observation", "Workload"]


@dataclass(frozen=True, slots=True)
class Image:
    """
    One image that the document starts.

    `reference` is as written, text of the document: show it as theirs. `digest` is 32 bytes, None
    where the reference is not pinned; `repository` is without tag and digest, empty where the
    reference cannot be read.
    """

    service: str
    reference: str
    repository: str
    digest: bytes | None
    place: str

    @property
    def pinned(self) -> bool:
        """Whether exactly one content can stand behind the reference."""
        return self.digest is not None


@dataclass(frozen=True, slots=True)
class Observation:
    """
    Something in the document that bears on `claim`.

    `contradicts` says that the claim is false by the document's own words; otherwise the document
    keeps it from being proven. `text` is ours; `place` is where it stands.
    """

    claim: ClaimName
    place: str
    text: str
    clause: str
    contradicts: bool = False

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


@dataclass(frozen=True, slots=True)
class Workload:
    """
    Everything read out of one launch document.

    `sha256` is that of the exact bytes. `judged` are the claims for which silence means something:
    the document was understood well enough that what is not observed is not there.
    `allowed_environment` are names that the operator may set after measurement. `verity_roots`
    are dm-verity roots (hex) that the document measures with it: weights, data sets.
    """

    kind: str
    sha256: bytes
    images: tuple[Image, ...]
    observations: tuple[Observation, ...]
    judged: frozenset[ClaimName]
    allowed_environment: tuple[str, ...] = ()
    verity_roots: tuple[str, ...] = ()

    @property
    def unpinned(self) -> tuple[Image, ...]:
        """The images that are not named by digest."""
        return tuple(image for image in self.images if not image.pinned)

    def about(self, claim: ClaimName) -> tuple[Observation, ...]:
        """Return what was observed about `claim`, contradictions first."""
        found: Iterable[Observation] = (o for o in self.observations if o.claim is claim)
        return tuple(sorted(found, key=lambda o: not o.contradicts))

    def shows(self, claim: ClaimName) -> bool:
        """Whether the document, as far as it goes, bears `claim` out."""
        return claim in self.judged and not self.about(claim)
