"""Where evidence comes from on the command line: a file, standard input, a bundle, a live service.

Used by `confide verify`, `confide compare` and `confide capture`. Loads and fetches; judges
nothing.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from confide.cli.endorsement_files import read_endorsements
from confide.cli.places import Places, read_moment, read_roots, read_start
from confide.cli.screen import printable
from confide.errors import ConfigurationError, FormatError, Reason
from confide.formats.registry import NAMES
from confide.formats.verify import as_told, join_endorsements, open_capture, read_evidence
from confide.trust.roots import VENDOR_ROOTS
from confide.wire.bundle import looks_like_bundle
from confide.wire.endorsements import Endorsements
from confide.wire.json import is_hex

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from contextlib import AbstractAsyncContextManager
    from datetime import datetime

    from confide.client.online import Online
    from confide.rats import Finding
    from confide.trust.roots import Roots
    from confide.wire.service import Capture, Evidence

__all__ = [
    "Loaded",
    "Options",
    "is_url",
    "load",
    "read_nonce",
    "read_target",
    "service_roots",
]

# From: wire/json.py, the bound on every document we parse.
_MAX_BYTES = 16 * 1024 * 1024
_OWN_CLOCK = "by the clock of this machine"
# The one format whose evidence says which model it is about.
_NAMES_MODELS = "near"
_CLAUSE = "docs/protocols/services.md#3"
# What a file begins with that no evidence does, and what that makes of it.
_STARTS = (
    (b"\xef\xbb\xbf", "begins with a byte order mark; JSON has none (RFC 8259 §8.1)"),
    (b"\xff\xfe", "text in UTF-16 or UTF-32; JSON is UTF-8 (RFC 8259 §8.1)"),
    (b"\xfe\xff", "text in UTF-16; JSON is UTF-8 (RFC 8259 §8.1)"),
    (b"{\0", "text in UTF-16 or UTF-32; JSON is UTF-8 (RFC 8259 §8.1)"),
    (b"\0{", "text in UTF-16; JSON is UTF-8 (RFC 8259 §8.1)"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"PK\x03\x04", "a ZIP archive; unpack it first"),
    (b"<", "XML or HTML: a manifest, or a page that a proxy or a login put in its place"),
)
# From: RFC 8785 §3.2.3: members are sorted; it begins with this and ends with its type.
_BUNDLE = b'{"blobs":{'


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
    """
    Evidence that was read, everything that came with it, and where it came from.

    `clock` says whose word `now` is. `sha256` (hex) is of the file, empty for a live service.
    `unavailable` says what vendors did not give.
    """

    name: str
    evidence: Evidence
    endorsements: Endorsements
    answer: Finding | None
    now: datetime
    clock: str
    live: bool
    sha256: str = ""
    unavailable: tuple[str, ...] = ()


def is_url(target: str) -> bool:
    """Whether `target` is a live service."""
    return target.lower().startswith(("https://", "http://"))


def read_target(target: str) -> bytes:
    """
    Read a file, or standard input for `-`: whatever it may hold, never more than 16 MiB of it.

    Raises `ConfigurationError` where there is nothing to read, `FormatError` for what cannot be
    evidence of any kind.
    """
    if not target:
        raise ConfigurationError("no target: name a file, - for standard input, or https://…")
    if "://" in target and not Path(target).exists():
        scheme = printable(target.partition("://")[0], max_chars=20)
        raise ConfigurationError(f"{scheme}:// is not spoken here: a live service is https://…")
    if target == "-":
        raw = sys.stdin.buffer.read(_MAX_BYTES + 1)
    else:
        raw = read_start(Path(target), "", _MAX_BYTES)
    if len(raw) > _MAX_BYTES:
        raise _no_evidence(f"more than {_MAX_BYTES >> 20} MiB; the rest was not read")
    if not raw:
        raise _no_evidence("empty")
    for start, what in _STARTS:
        if raw.startswith(start):
            raise _no_evidence(what)
    return raw


def _no_evidence(why: str) -> FormatError:
    return FormatError(f"evidence: {why}", reason=Reason.SERVICE_FORMAT, clause=_CLAUSE)


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
    if option.startswith("sha256:"):
        raise ConfigurationError(
            "--simulated-roots sha256:HEX is for receipts, which bring their roots along; "
            "evidence needs the roots file"
        )
    roots = read_roots(option)
    if not roots.simulated:
        raise ConfigurationError("--simulated-roots wants a roots file of a simulation")
    return roots


def load(target: str, raw: bytes | None, options: Options) -> Loaded:
    """
    Load what `target` presents: `raw` where it is a file, over the network where it is a URL.

    Raises `FormatError`, `Unsupported`, `Unavailable`, `ConfigurationError`.
    """
    nonce = read_nonce(options.nonce)
    own = read_endorsements(options.endorsements)
    if options.format and options.format not in NAMES:
        raise ConfigurationError(f"--format is one of {', '.join(NAMES)}")
    places = Places.here()
    if raw is None:
        if options.at not in {"", "now"}:
            raise ConfigurationError("--at is for saved evidence; a live service is checked now")
        return _run(_live(target, nonce, own, options, places))
    if options.pccs is not None and not options.fetch:
        raise ConfigurationError("--pccs says whom to ask, so it needs --fetch or a live service")
    if raw.startswith(_BUNDLE) and not looks_like_bundle(raw):
        raise _no_evidence("the beginning of a bundle or a receipt; its end is missing")
    given = options.at not in {"", "now"}
    capture, passed = open_capture(raw, nonce=nonce)
    if options.format:
        capture = replace(capture, format=options.format)
    evidence, answer = read_evidence(_asking(capture, options.model))
    if options.model and evidence.format != _NAMES_MODELS:
        raise ConfigurationError(f"--model: {evidence.format} evidence names no model")
    found = Loaded(
        name="standard input" if target == "-" else target,
        # What a bundle says about its nonce and its connection is the word of whoever made it.
        evidence=as_told(evidence, nonce=nonce),
        endorsements=join_endorsements(own, passed),
        answer=answer,
        now=read_moment(options.at) if given else places.clock.now(),
        clock="given with --at" if given else _OWN_CLOCK,
        live=False,
        sha256=hashlib.sha256(raw).hexdigest(),
    )
    return _run(_with_fetched(found, options, places)) if options.fetch else found


def _run(work: Coroutine[Any, Any, Loaded]) -> Loaded:
    # The network, asyncio with it, is loaded only by those who ask for it.
    import asyncio  # noqa: PLC0415

    return asyncio.run(work)


def _asking(capture: Capture, model: str) -> Capture:
    """Return `capture` as one that asked for `model`: readers compare, and say what they find."""
    if not model:
        return capture
    parts = urlsplit(capture.url)
    pairs = [pair for pair in parse_qsl(parts.query) if pair[0] != "model"]
    # A name that is no Unicode is nobody's, and no error of ours.
    query = urlencode([*pairs, ("model", model)], errors="surrogateescape")
    return replace(capture, url=urlunsplit(parts._replace(query=query)))


async def _live(
    url: str, nonce: bytes | None, own: Endorsements, options: Options, places: Places
) -> Loaded:
    from confide.client.capture import capture  # noqa: PLC0415
    from confide.formats.registry import find_format  # noqa: PLC0415

    async with _online(options, places) as online:
        found: Capture = await capture(
            url,
            format=find_format(options.format) if options.format else None,
            nonce=nonce,
            http=online.service,
            clock=places.clock,
            entropy=places.entropy,
            model=options.model,
        )
        evidence, answer = read_evidence(_asking(found, options.model))
        loaded = Loaded(
            name=url,
            evidence=evidence,
            endorsements=own,
            answer=answer,
            now=places.clock.now(),
            clock=_OWN_CLOCK,
            live=True,
        )
        return await _joined(loaded, online)


async def _with_fetched(loaded: Loaded, options: Options, places: Places) -> Loaded:
    async with _online(options, places) as online:
        return await _joined(loaded, online)


def _online(options: Options, places: Places) -> AbstractAsyncContextManager[Online]:
    from confide.client.online import VendorServices, open_online  # noqa: PLC0415

    return open_online(
        clock=places.clock,
        entropy=places.entropy,
        cache=places.paths.endorsements,
        services=VendorServices(pccs=options.pccs),
    )


async def _joined(loaded: Loaded, online: Online) -> Loaded:
    """Return `loaded` with what vendors give for it."""
    from confide.adapters.endorse import gather_endorsements  # noqa: PLC0415

    gathered = await gather_endorsements(loaded.evidence, sources=online.sources)
    return replace(
        loaded,
        endorsements=join_endorsements(loaded.endorsements, gathered.endorsements),
        unavailable=tuple(gathered.failures),
    )
