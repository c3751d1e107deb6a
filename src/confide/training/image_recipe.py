"""A training with an image of the owner's: what `train.toml` decides, and the plan of such a job.

docs/protocols/training-image.md §1, 4.1. Frozen values with one digest each; nothing here judges
what is in the image. `image_recipe_file` reads them.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from confide.wire.json import jcs
from confide.wire.keyset import format_time

if TYPE_CHECKING:
    from datetime import datetime

    from confide.wire.json import JsonValue

__all__ = ["ImageLimits", "ImagePaths", "ImagePlan", "ImageRecipe", "image_boot_claim"]

_MIB: Final = 1024 * 1024
_GIB: Final = 1024 * _MIB
_RECIPE: Final = "confide/training-image-recipe/v1"
_PLAN: Final = "confide/training-image-plan/v1"
_BOOT: Final = "confide/training-image-boot/v1"


@dataclass(frozen=True, slots=True)
class ImagePaths:
    """Where an image finds its rows and its base, and leaves its weights: inside the container."""

    rows: str = "/data/rows.jsonl"
    validation: str = "/data/validation.jsonl"
    base: str = "/base"
    output: str = "/output"

    @property
    def data(self) -> str:
        """The folder of the rows."""
        return self.rows.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may use; the node enforces each, and has limits of its own above them."""

    memory_bytes: int = 4 * _GIB
    cpus_milli: int = 2000
    pids: int = 256
    wall_seconds: int = 3600
    output_bytes: int = _GIB
    output_files: int = 1000
    scratch_bytes: int = 256 * _MIB


@dataclass(frozen=True, slots=True)
class ImageRecipe:
    """
    What the owner decided about one job: which image, and how it is run.

    `image` is the SHA-256 of its manifest (hex), `command` empty where the image's own entry point
    is used, `environment` sorted by name. Both may hold what is the owner's alone: they stay out of
    every `repr`.
    """

    base_model: str
    image: str
    command: tuple[str, ...] = field(default=(), repr=False)
    gpu: bool = False
    environment: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    paths: ImagePaths = field(default_factory=ImagePaths)
    limits: ImageLimits = field(default_factory=ImageLimits)

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value, every key there."""
        return {
            "type": _RECIPE,
            "base_model": self.base_model,
            "image": self.image,
            "command": list(self.command),
            "gpu": self.gpu,
            "network": "none",
            "environment": dict(self.environment),
            "paths": asdict(self.paths),
            "limits": asdict(self.limits),
        }

    def canonical(self) -> bytes:
        """Return the RFC 8785 bytes: what travels and what is hashed."""
        return jcs(self.value())

    @property
    def digest(self) -> bytes:
        """SHA-256 over the canonical bytes."""
        return hashlib.sha256(self.canonical()).digest()


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """
    Digests of what goes into a job (4.1), 32 bytes each; `validation` is None without such rows.

    That the recipe names this image, the node requires; who reads the record sees both digests.
    """

    recipe: bytes
    image: bytes
    dataset: bytes
    validation: bytes | None
    base: bytes

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value."""
        return {
            "type": _PLAN,
            "recipe": self.recipe.hex(),
            "image": self.image.hex(),
            "dataset": self.dataset.hex(),
            "validation": None if self.validation is None else self.validation.hex(),
            "base": self.base.hex(),
        }

    @property
    def digest(self) -> bytes:
        """SHA-256 over the canonical value."""
        return hashlib.sha256(jcs(self.value())).digest()


def image_boot_claim(*, job: bytes, plan: bytes, at: datetime) -> bytes:
    """Return the claim with which the one boot of a job is proven before its start (4.2)."""
    document: JsonValue = {
        "type": _BOOT,
        "job": job.hex(),
        "plan": plan.hex(),
        "at": format_time(at),
    }
    return hashlib.sha256(jcs(document)).digest()
