"""Where evidence comes from on the command line: a file, standard input, a bundle, a live service.

Used by `confide verify`, `confide compare` and `confide capture`. Loads and fetches; judges
nothing.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from confide.appraisal.policy_file import MAX_POLICY_CHARS, parse_policy
from confide.appraisal.service_profiles import PROFILES
from confide.cli.places import Places, read_bounded, read_moment, read_roots
from confide.errors import ConfigurationError, FormatError, Reason
from confide.formats.verify import join_endorsements, open_capture, read_evidence
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.bundle import decode_bundle, looks_like_bundle
from confide.wire.endorsements import Endorsements
from confide.wire.json import is_hex

if TYPE_CHECKING:
    from datetime import datetime

    from confide.appraisal.service_policy import Policy
    from confide.rats import Finding
    from confide.trust.roots import Roots
    from confide.wire.service import Capture, Evidence

__all__ = [
    "Loaded",
    "Options",
    "is_url",
    "load",
    "read_nonce",
    "read_policy",
    "read_target",
    "service_roots",
]

# From: wire/json.py, the bound on every document we parse.
_MAX_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of one command that say what to load and what to hold it to."""

    policy: str = "strict"
    nonce: str | None = None
    endorsements: tuple[Path, ...] = ()
    fetch: bool = False
    format: str = ""
    model: str = ""
    pccs: str | None = None
    simulated_roots: str | None = None
    at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Evidence that was read, everything that came with it, and where it came from."""

    name: str
    evidence: Evidence
    endorsements: Endorsements
    answer: Finding | None
    now: datetime
    live: bool
    unavailable: tuple[str, ...] = ()


def is_url(target: str) -> bool:
    """Whether `target` is a live service."""
    return target.startswith(("https://", "http://"))


def read_target(target: str) -> bytes:
    """Read a file, or standard input for `-`. Raises `ConfigurationError`, `FormatError`."""
    if target == "-":
        raw = sys.stdin.buffer.read(_MAX_BYTES + 1)
    else:
        try:
            with Path(target).open("rb") as file:
                raw = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise ConfigurationError(f"{target} cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_BYTES:
        raise FormatError(
            f"evidence: more than {_MAX_BYTES} bytes",
            reason=Reason.SERVICE_FORMAT,
            clause="docs/protocols/services.md#3",
        )
    return raw


def read_policy(name: str) -> Policy:
    """Return a profile by its name, or the policy in a file."""
    if name in PROFILES:
        return PROFILES[name]
    raw = read_bounded(Path(name), "policy")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            "policy: not UTF-8", reason=Reason.POLICY_FORMAT, clause="docs/protocols/policy.md#1"
        ) from error
    if len(text) > MAX_POLICY_CHARS:
        raise ConfigurationError(f"policy {name} is larger than {MAX_POLICY_CHARS} characters")
    return parse_policy(text)


def read_nonce(text: str | None) -> bytes | None:
    """Return the nonce that an option gives: 32 bytes of hex."""
    if text is None:
        return None
    if not is_hex(text.lower(), 32):
        raise ConfigurationError("--nonce is 64 hex digits: the 32 bytes that you drew")
    return bytes.fromhex(text)


def service_roots(option: str | None) -> Roots:
    """Return the vendors' roots, or the simulated ones that the caller names."""
    if option is None:
        return VENDOR_ROOTS
    roots = read_roots(option)
    if not roots.simulated:
        raise ConfigurationError("--simulated-roots wants a roots file")
    return roots


def load(target: str, raw: bytes | None, options: Options) -> Loaded:
    """
    Load what `target` presents: `raw` where it is a file, over the network where it is a URL.

    Raises `FormatError`, `Unsupported`, `Unavailable`, `ConfigurationError`.
    """
    nonce = read_nonce(options.nonce)
    own = _own_endorsements(options.endorsements)
    places = Places.here()
    if raw is None:
        if options.at not in {"", "now"}:
            raise ConfigurationError("--at is for saved evidence; a live service is checked now")
        return asyncio.run(_live(target, nonce, own, options, places))
    now = places.clock.now() if options.at in {"", "now"} else read_moment(options.at)
    capture, passed = open_capture(raw)
    if options.format:
        capture = replace(capture, format=options.format)
    evidence, answer = read_evidence(capture)
    found = Loaded(
        name="standard input" if target == "-" else target,
        # What a bundle says about its nonce is the word of whoever made it.
        evidence=replace(evidence, nonce=nonce),
        endorsements=join_endorsements(own, passed),
        answer=answer,
        now=now,
        live=False,
    )
    return asyncio.run(_with_fetched(found, options, places)) if options.fetch else found


def _own_endorsements(paths: tuple[Path, ...]) -> Endorsements:
    found = Endorsements()
    for path in paths:
        raw = read_bounded(path, "endorsements")
        offered = decode_bundle(raw)[1] if looks_like_bundle(raw) else Endorsements(tdx=(raw,))
        found = join_endorsements(found, offered)
    return found


async def _live(
    url: str, nonce: bytes | None, own: Endorsements, options: Options, places: Places
) -> Loaded:
    # The network is loaded only by those who ask for it.
    from confide.client.capture import capture  # noqa: PLC0415
    from confide.client.online import VendorServices, open_online  # noqa: PLC0415
    from confide.formats.registry import find_format  # noqa: PLC0415

    async with open_online(
        clock=places.clock,
        entropy=places.entropy,
        cache=places.paths.endorsements,
        services=VendorServices(pccs=options.pccs),
    ) as online:
        found: Capture = await capture(
            url,
            format=find_format(options.format) if options.format else None,
            nonce=nonce,
            http=online.service,
            clock=places.clock,
            entropy=places.entropy,
            model=options.model,
        )
    evidence, answer = read_evidence(found)
    loaded = Loaded(
        name=url,
        evidence=evidence,
        endorsements=own,
        answer=answer,
        now=places.clock.now(),
        live=True,
    )
    return await _with_fetched(loaded, options, places)


async def _with_fetched(loaded: Loaded, options: Options, places: Places) -> Loaded:
    from confide.client.endorse import gather_endorsements  # noqa: PLC0415
    from confide.client.online import VendorServices, open_online  # noqa: PLC0415

    async with open_online(
        clock=places.clock,
        entropy=places.entropy,
        cache=places.paths.endorsements,
        services=VendorServices(pccs=options.pccs),
    ) as online:
        gathered = await gather_endorsements(loaded.evidence, sources=online.sources)
    return replace(
        loaded,
        endorsements=join_endorsements(loaded.endorsements, gathered.endorsements),
        unavailable=tuple(gathered.failures),
    )
