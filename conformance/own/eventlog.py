"""Candidates of stage `eventlog`: one simulated guest, its two logs, and one edit at a time."""

from __future__ import annotations

import hashlib
import json
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from confide.errors import Reason
from confide.simulator.boot import measure_boot
from confide.simulator.dstack_launch import launch_guest
from confide.wire.rtmr_log import extend_register
from conformance.own.candidate import Candidate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["candidates", "document"]

_COMPOSE = b'{"docker_compose_file":"services: {}","name":"SIMULATED","runner":"docker-compose"}'
_GUEST = launch_guest(_COMPOSE, label="conformance")
_BOOT = measure_boot(role="model", software=bytes(32), kernel="SIMULATED")
_BOOT_RTMR = [_BOOT.rtmr0, _BOOT.rtmr1, _BOOT.rtmr2, bytes(48)]
_Log = list[dict[str, Any]]


def document() -> dict[str, Any]:
    """Return the top of the index."""
    return {"note": "now is null: the replay of a log does not depend on time"}


def _runtime_digest(event: dict[str, Any]) -> bytes:
    # From: docs/protocols/eventlog.md §1: digests of version 1.
    parts = (int(event["event_type"]).to_bytes(4, "little"), event["event"].encode())
    payload = bytes.fromhex(event["event_payload"])
    return hashlib.sha384(b":".join((*parts, payload))).digest()


def _replayed(log: _Log) -> list[bytes]:
    """Return the registers that `log` gives: what a machine that ran it would have."""
    registers = [bytes(48)] * 4
    for event in log:
        digest = bytes.fromhex(event["digest"])
        registers[event["imr"]] = extend_register(registers[event["imr"]], digest)
    return registers


def _registers(values: list[bytes]) -> bytes:
    stated = {"rtmr": [value.hex() for value in values], "mrconfigid": _CONFIG_ID}
    return json.dumps(stated).encode()


_CONFIG_ID = _GUEST.launch.mr_config_id.hex()


def _dstack(
    slug: str,
    edit: Callable[[_Log], None],
    reason: Reason | None,
    *,
    ran: bool = False,
    compose: bytes = _COMPOSE,
) -> Candidate:
    """Return the log after `edit`; with `ran` the registers are those of the edited log."""
    log: _Log = deepcopy(_GUEST.log)  # type: ignore[arg-type]
    edit(log)
    registers = _replayed(log) if ran else list(_GUEST.launch.rtmr)
    return Candidate(
        slug,
        {
            "files": {
                "event_log": "log.json",
                "registers": "registers.json",
                "app_compose": "compose.json",
            },
            "now": None,
        },
        {
            "log.json": json.dumps(log).encode(),
            "registers.json": _registers(registers),
            "compose.json": compose,
        },
        reason,
    )


def _position(log: _Log, name: str) -> int:
    return next(at for at, event in enumerate(log) if event["event"] == name)


def _rename(log: _Log, name: str, other: str) -> None:
    event = log[_position(log, name)]
    event["event"] = other
    event["digest"] = _runtime_digest(event).hex()


def _unknown(log: _Log) -> None:
    _rename(log, "storage-fs", "unknown-event")


def _swap(log: _Log) -> None:
    at = _position(log, "app-id")
    log[at], log[at + 1] = log[at + 1], log[at]


def _twice(log: _Log) -> None:
    at = _position(log, "compose-hash")
    log.insert(at, deepcopy(log[at]))


def _set(name: str, **changes: Any) -> Callable[[_Log], None]:
    return lambda log: log[_position(log, name)].update(changes)


def _flip_register(register: int) -> Callable[[_Log], None]:
    def edit(log: _Log) -> None:
        event = next(event for event in log if event["imr"] == register)
        event["digest"] = bytes(48).hex()

    return edit


def _drop(name: str) -> Callable[[_Log], None]:
    def edit(log: _Log) -> None:
        del log[_position(log, name)]

    return edit


def _drop_last(log: _Log) -> None:
    del log[-1]


def _ccel(slug: str, raw: bytes, reason: Reason | None) -> Candidate:
    files = {"ccel": "ccel.bin", "registers": "registers.json"}
    return Candidate(
        slug,
        {"files": files, "now": None},
        {"ccel.bin": raw, "registers.json": _registers(_BOOT_RTMR)},
        reason,
    )


def _patched(raw: bytes, offset: int, piece: bytes) -> bytes:
    return raw[:offset] + piece + raw[offset + len(piece) :]


def candidates() -> Iterator[Candidate]:
    """Yield both honest logs and every way of being dishonest that has a reason of its own."""
    yield _dstack("honest", lambda _log: None, None)
    for register in range(3):
        reason = Reason(f"rtmr{register}-mismatch")
        yield _dstack(f"register-{register}-differs", _flip_register(register), reason)
    yield _dstack("last-event-dropped", _drop_last, Reason.RTMR3_MISMATCH)
    digest = _set("compose-hash", digest=bytes(48).hex())
    yield _dstack("digest-differs", digest, Reason.DIGEST_MISMATCH)
    yield _dstack("digest-differs-replayed", digest, Reason.DIGEST_MISMATCH, ran=True)
    edited = _set("compose-hash", event_payload=bytes(32).hex())
    yield _dstack("payload-edited", edited, Reason.DIGEST_MISMATCH)
    yield _dstack("type-changed", _set("compose-hash", event_type=1), Reason.RUNTIME_EVENT_TYPE)
    yield _dstack("register-4", _set("compose-hash", imr=4), Reason.LOG_REGISTER)
    yield _dstack("digest-not-hex", _set("compose-hash", digest="xx"), Reason.LOG_FORMAT)
    yield _dstack("swapped", _swap, Reason.EVENT_ORDER, ran=True)
    yield _dstack("compose-hash-twice", _twice, Reason.EVENT_DUPLICATE, ran=True)
    yield _dstack("no-compose-hash", _drop("compose-hash"), Reason.EVENT_MISSING, ran=True)
    yield _dstack("no-system-ready", _drop("system-ready"), Reason.EVENT_MISSING, ran=True)
    yield _dstack("unknown-event", _unknown, Reason.EVENT_UNKNOWN, ran=True)
    newline = _COMPOSE + b"\n"
    yield _dstack(
        "compose-edited", lambda _log: None, Reason.COMPOSE_HASH_MISMATCH, compose=newline
    )
    log = _BOOT.firmware_log
    yield _ccel("ccel-honest", log, None)
    yield _ccel("ccel-truncated", log[:-3], Reason.LOG_TRUNCATED)
    yield _ccel("ccel-flipped", _patched(log, len(log) - 8, b"\xff"), Reason.LOG_FORMAT)
    for at, byte in enumerate(log):
        if byte == 1 and log[at : at + 4] == b"\1\0\0\0":
            yield _ccel("ccel-register-5", _patched(log, at, b"\5"), Reason.LOG_REGISTER)
