"""OCI images: the documents that name content by digest. Pure.

OCI image-spec 1.1: `descriptor.md`, `manifest.md`, `config.md`. Read from hostile bytes with the
strict JSON reader; unknown members are kept out of our way, not refused, because images made by
others carry annotations. What we write is RFC 8785, so that equal content gives equal bytes.

Names: the *image digest* everywhere in Confide is the SHA-256 of the manifest. Engines call the
SHA-256 of the config the *image id*. A manifest fixes its config and its layers.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from confide.errors import FormatError, Reason
from confide.wire.json import JsonLimits, JsonValue, jcs, parse_json

__all__ = [
    "MEDIA_CONFIG",
    "MEDIA_LAYER",
    "MEDIA_MANIFEST",
    "RUN_AS",
    "Descriptor",
    "ImageConfig",
    "ImageManifest",
    "build_config",
    "build_manifest",
    "image_index",
    "parse_config",
    "parse_manifest",
]

_CLAUSE = "OCI image-spec 1.1"
_REASON = Reason.IMAGE_FORMAT
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_LIMITS = JsonLimits(max_bytes=4 * 1024 * 1024, max_depth=32)
_MAX_LAYERS = 127  # From: the overlay driver of containers-storage stacks at most 128.

MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_LAYER = "application/vnd.oci.image.layer.v1.tar"
# Fixed, because a date is the one thing that differs between two equal builds.
_CREATED = "1970-01-01T00:00:00Z"
RUN_AS = "65532:65532"


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob: media type, SHA-256 (hex, without prefix), size in bytes."""

    media_type: str
    digest: str
    size: int

    def document(self) -> dict[str, JsonValue]:
        """Return the JSON form."""
        return {
            "mediaType": self.media_type,
            "digest": f"sha256:{self.digest}",
            "size": self.size,
        }

    @classmethod
    def of(cls, media_type: str, raw: bytes) -> Descriptor:
        """Describe `raw`."""
        return cls(media_type, hashlib.sha256(raw).hexdigest(), len(raw))


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """What a manifest fixes: its own digest, the config, the layers bottom first."""

    digest: str
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The members of an image config that an agent image inherits."""

    architecture: str
    os: str
    variant: str
    environment: tuple[str, ...]
    diff_ids: tuple[str, ...]


def parse_manifest(raw: bytes) -> ImageManifest:
    """
    Parse one image manifest; an index (many platforms) is refused.

    Does not check that the blobs exist or match. Raises `FormatError`.
    """
    top = _object(parse_json(raw, what="image manifest", reason=_REASON, limits=_LIMITS))
    if top.get("schemaVersion") != 2 or "manifests" in top:
        raise _refusal("manifest: not a single image manifest, schema 2")
    layers = top.get("layers")
    if not isinstance(layers, list) or not 0 < len(layers) <= _MAX_LAYERS:
        raise _refusal(f"manifest: layers are not 1 to {_MAX_LAYERS}")
    return ImageManifest(
        digest=hashlib.sha256(raw).hexdigest(),
        config=_descriptor(top.get("config")),
        layers=tuple(_descriptor(layer) for layer in layers),
    )


def parse_config(raw: bytes) -> ImageConfig:
    """Parse an image config. Raises `FormatError`."""
    top = _object(parse_json(raw, what="image config", reason=_REASON, limits=_LIMITS))
    inner = top.get("config")
    environment = _object(inner).get("Env") if inner is not None else []
    rootfs = _object(top.get("rootfs"))
    if rootfs.get("type") != "layers":
        raise _refusal("config: rootfs is not of type layers")
    diff_ids = _texts(rootfs.get("diff_ids"))
    if not all(_DIGEST.match(digest) for digest in diff_ids):
        raise _refusal("config: a diff id is not a SHA-256 digest")
    return ImageConfig(
        architecture=_text(top.get("architecture")),
        os=_text(top.get("os")),
        variant=_text(top.get("variant", "")),
        environment=_texts(environment if environment is not None else []),
        diff_ids=tuple(digest.removeprefix("sha256:") for digest in diff_ids),
    )


def build_config(
    base: ImageConfig,
    *,
    diff_ids: tuple[str, ...],
    entry: tuple[str, ...],
    environment: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
) -> bytes:
    """
    Return the config of an image that adds layers with `diff_ids` on top of `base`.

    `environment` replaces variables of the base by name. Equal arguments, equal bytes.
    """
    variables = {item.partition("=")[0]: item for item in (*base.environment, *environment)}
    rootfs: dict[str, JsonValue] = {
        "type": "layers",
        "diff_ids": [f"sha256:{digest}" for digest in (*base.diff_ids, *diff_ids)],
    }
    document: dict[str, JsonValue] = {
        "architecture": base.architecture,
        "os": base.os,
        "created": _CREATED,
        "config": {
            "User": RUN_AS,
            "WorkingDir": "/agent",
            "Entrypoint": list(entry),
            "Env": [variables[name] for name in sorted(variables)],
            "Labels": dict(labels),
        },
        "rootfs": rootfs,
    }
    if base.variant:
        document["variant"] = base.variant
    return jcs(document)


def build_manifest(config: Descriptor, layers: tuple[Descriptor, ...]) -> bytes:
    """Return the manifest of `config` and `layers`, bottom first."""
    return jcs(
        {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": config.document(),
            "layers": [layer.document() for layer in layers],
        }
    )


def image_index(manifest: Descriptor) -> bytes:
    """Return the `index.json` of a layout that holds this one image."""
    return jcs({"schemaVersion": 2, "manifests": [manifest.document()]})


def _object(value: JsonValue) -> dict[str, JsonValue]:
    if not isinstance(value, dict):
        raise _refusal("an object was expected")
    return value


def _text(value: JsonValue) -> str:
    if not isinstance(value, str):
        raise _refusal("a string was expected")
    return value


def _texts(value: JsonValue) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _refusal("an array of strings was expected")
    return tuple(_text(item) for item in value)


def _descriptor(value: JsonValue) -> Descriptor:
    members = _object(value)
    size, digest = members.get("size"), _text(members.get("digest"))
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise _refusal("descriptor: size is not a number of bytes")
    if not _DIGEST.match(digest):
        raise _refusal("descriptor: not a SHA-256 digest")
    return Descriptor(_text(members.get("mediaType")), digest.removeprefix("sha256:"), size)


def _refusal(why: str) -> FormatError:
    return FormatError(why, reason=_REASON, clause=_CLAUSE)
