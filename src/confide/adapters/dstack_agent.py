"""The guest agent of dstack on its unix socket: which generation it is, and quotes from it.

docs/protocols/hardware.md §5; dstack.md §1. The agent is part of the machine's own image and is
believed no more than its quotes are: every answer is bounded in size and time, and what comes back
is compared with what was asked for. Blocks; call it from a worker thread.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import httpx2

from confide.adapters.tdx_tsm import require_quote
from confide.errors import ConfigurationError, FormatError, Reason, Unavailable, Unsupported
from confide.wire.dstack import parse_envelope
from confide.wire.json import JsonLimits, is_hex, jcs, parse_json
from confide.wire.rtmr_log import parse_log

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confide.wire.json import JsonValue
    from confide.wire.rtmr_log import LogEntry, RuntimeEvent

__all__ = ["DSTACK_SOCKETS", "DstackAgent", "DstackApi", "DstackQuote", "connect_dstack"]

# From: dstack.md §2 of the reference on transports; the newer place first.
DSTACK_SOCKETS: Final = ("/var/run/dstack/dstack.sock", "/var/run/dstack.sock")
# From: docs/protocols/dstack.md §2.3, an envelope of 10 MiB, in hex inside JSON.
_MAX_ANSWER_BYTES: Final = 24 * 1024 * 1024
_MAX_SMALL_BYTES: Final = 64 * 1024
_LIMITS: Final = JsonLimits(_MAX_ANSWER_BYTES, 16)
_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 30.0
_REPORT_DATA_BYTES: Final = 64
_MAX_VERSION_CHARS: Final = 64
# From: dstack's router: v1 is there and does not know the method.
_NO_METHOD: Final = "Service not found"


class DstackApi(StrEnum):
    """Generations of the agent's interface."""

    # 0.5.x: unversioned, with `EmitEvent`.
    LEGACY = "0.5"
    # 0.6: unversioned, frozen as v0, without `EmitEvent`.
    V0 = "v0"
    V1 = "v1"


@dataclass(frozen=True, slots=True)
class DstackQuote:
    """A quote over what was asked for, and the log that came with it; both unverified."""

    quote: bytes
    entries: tuple[LogEntry, ...]
    rtmr: tuple[bytes, bytes, bytes, bytes]


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes


class _Socket:
    """Bounded exchanges with whatever listens on a unix socket. `seconds` bounds each of them."""

    def __init__(self, path: str, seconds: float) -> None:
        self._seconds = seconds
        self._http = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=path),
            base_url="http://dstack",
            timeout=httpx2.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS)),
            trust_env=False,
            follow_redirects=False,
        )

    def get(self, method: str) -> _Answer:
        return self._exchange("GET", method, None, _MAX_SMALL_BYTES)

    def post(self, method: str, asked: dict[str, JsonValue], *, max_bytes: int) -> _Answer:
        return self._exchange("POST", method, jcs(asked), max_bytes)

    def close(self) -> None:
        self._http.close()

    def _exchange(self, verb: str, method: str, body: bytes | None, max_bytes: int) -> _Answer:
        # The timeout of the client bounds each read; the deadline bounds an answer that drips.
        deadline = time.monotonic() + self._seconds
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        found = bytearray()
        try:
            with self._http.stream(verb, f"/{method}", content=body, headers=headers) as answer:
                for piece in answer.iter_raw():
                    found += piece
                    if len(found) > max_bytes:
                        raise Unavailable(f"the dstack agent's answer to {method} is too long")
                    if time.monotonic() > deadline:
                        raise Unavailable(f"the dstack agent's answer to {method} takes too long")
                return _Answer(answer.status_code, bytes(found))
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise Unavailable(f"the dstack agent does not answer {method}") from error


class DstackAgent:
    """One agent of a known generation. `version` is its own word."""

    def __init__(self, http: _Socket, api: DstackApi, version: str) -> None:
        self._socket = http
        self.api = api
        self.version = version

    @property
    def emits_events(self) -> bool:
        """Whether this generation extends RTMR3 when it is asked to."""
        return self.api is DstackApi.LEGACY

    def quote(self, report_data: bytes) -> DstackQuote:
        """
        Return a quote over exactly these 64 bytes and the log of that quote.

        Raises `Unavailable` for an agent that fails, or answers something else than was asked.
        """
        if len(report_data) != _REPORT_DATA_BYTES:
            raise ValueError("report data has 64 bytes")
        asked: dict[str, JsonValue] = {"report_data": report_data.hex()}
        method = "v1/Attest" if self.api is DstackApi.V1 else "GetQuote"
        answer = self._call(method, asked, max_bytes=_MAX_ANSWER_BYTES)
        try:
            quote, log = _read_envelope(answer) if self.api is DstackApi.V1 else _read_v0(answer)
            entries = parse_log(log)
        except FormatError as error:
            raise Unavailable(f"the dstack agent's answer to {method} cannot be read") from error
        return DstackQuote(quote, entries, require_quote(quote, report_data).rtmr)

    def emit(self, event: RuntimeEvent) -> None:
        """
        Ask for RTMR3 to be extended by `event`; the next quote shows whether it was.

        Raises `Unsupported` where this generation does not do that.
        """
        if not self.emits_events:
            raise Unsupported("this dstack agent extends no register (EmitEvent went with 0.6)")
        asked: dict[str, JsonValue] = {"event": event.name, "payload": event.payload.hex()}
        answer = self._socket.post("EmitEvent", asked, max_bytes=_MAX_SMALL_BYTES)
        if answer.status != 200:
            raise Unavailable(f"the dstack agent refused EmitEvent: status {answer.status}")

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def _call(
        self, method: str, asked: dict[str, JsonValue], *, max_bytes: int
    ) -> dict[str, JsonValue]:
        answer = self._socket.post(method, asked, max_bytes=max_bytes)
        if answer.status != 200:
            raise Unavailable(f"the dstack agent refused {method}: status {answer.status}")
        return _object(answer.body, method)


def connect_dstack(path: str, *, seconds: float = _ANSWER_SECONDS) -> DstackAgent:
    """
    Find out which generation answers on the socket `path`. `seconds` bounds every answer.

    Raises `ConfigurationError` where none that is known does, `Unavailable` where nothing answers.
    """
    _require_listener(path)
    asked = _Socket(path, seconds)
    try:
        api, version = _probe(asked)
    except BaseException:
        asked.close()
        raise
    return DstackAgent(asked, api, version)


def _require_listener(path: str) -> None:
    # Tried here first: the HTTP client leaves the socket of a failed attempt open.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tried:
        tried.settimeout(_CONNECT_SECONDS)
        try:
            tried.connect(path)
        except OSError as error:
            raise Unavailable("the dstack agent does not answer on its socket") from error


def _probe(asked: _Socket) -> tuple[DstackApi, str]:
    newest = asked.get("v1/Version")
    if newest.status == 200:
        return DstackApi.V1, _version(newest)
    if newest.status != 404:
        raise Unavailable(f"the dstack agent refused Version: status {newest.status}")
    if _says_no_method(newest.body):
        return DstackApi.V1, ""
    older = asked.get("Version")
    if older.status != 200:
        raise ConfigurationError(
            "what answers on the dstack socket is no agent of 0.5.x, 0.6 or v1; older ones "
            "(tappd) are not driven"
        )
    version = _version(older)
    legacy = version.removeprefix("v").startswith("0.5.")
    return (DstackApi.LEGACY if legacy else DstackApi.V0), version


def _says_no_method(body: bytes) -> bool:
    try:
        error = _object(body, "Version").get("error")
    except Unavailable:
        return False
    return isinstance(error, str) and error.startswith(_NO_METHOD)


def _version(answer: _Answer) -> str:
    version = _object(answer.body, "Version").get("version")
    if (
        not isinstance(version, str)
        or not 0 < len(version) <= _MAX_VERSION_CHARS
        or not (version.isascii() and version.isprintable())
    ):
        raise Unavailable("the dstack agent does not say its version")
    return version


def _object(body: bytes, method: str) -> dict[str, JsonValue]:
    try:
        value = parse_json(body, what="dstack", reason=Reason.SERVICE_FORMAT, limits=_LIMITS)
    except FormatError as error:
        raise Unavailable(f"the dstack agent's answer to {method} is no JSON") from error
    if not isinstance(value, dict):
        raise Unavailable(f"the dstack agent's answer to {method} is no object")
    return value


def _hex(answer: Mapping[str, JsonValue], name: str) -> bytes:
    text = answer.get(name)
    text = text.removeprefix("0x").lower() if isinstance(text, str) else ""
    if not text or len(text) % 2 or not is_hex(text, len(text) // 2):
        raise Unavailable(f"the dstack agent's answer has no {name}")
    return bytes.fromhex(text)


def _read_v0(answer: Mapping[str, JsonValue]) -> tuple[bytes, JsonValue]:
    # From: docs/protocols/dstack.md §1.1. An attestation beside them would be a second machine; a
    # null or an empty one is none.
    if answer.get("attestation"):
        raise Unavailable("the dstack agent's answer holds a quote next to an attestation")
    log = answer.get("event_log")
    if not isinstance(log, str):
        raise Unavailable("the dstack agent's answer has no event log")
    return _hex(answer, "quote"), parse_json(
        log.encode(), what="event log", reason=Reason.LOG_FORMAT, limits=_LIMITS
    )


def _read_envelope(answer: Mapping[str, JsonValue]) -> tuple[bytes, JsonValue]:
    try:
        found = parse_envelope(_hex(answer, "attestation"))
    except Unsupported as error:
        raise ConfigurationError("this dstack machine is no TDX guest") from error
    if found.quote is None:
        raise ConfigurationError("this dstack machine is no TDX guest")
    return found.quote, found.event_log
