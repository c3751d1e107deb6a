"""The `openai` SDK over proven nodes: its own client objects, with our transport under them.

Clauses: docs/protocols/client.md §1 and §6. Nothing of the SDK is replaced or patched: what it
sends goes sealed to a node that was proven first, and what it gets was verified. Its base URL names
a host that resolves nowhere, so whatever does not take this transport reaches nobody.

Errors leave as exceptions that are of both trees: the class of ours that says what happened
(`Rejected`, `Unavailable`, …) and `openai.APIError`, which programs for the SDK expect.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from confide.adapters.answer_client import answer_client, blocking_client
from confide.adapters.answer_transport import ANSWER, was_timeout
from confide.adapters.carrier import NotSent
from confide.adapters.clock import SystemClock
from confide.adapters.entropy import SystemEntropy
from confide.adapters.paths import Paths
from confide.adapters.receipt_db import ReceiptDatabase
from confide.channel.padding import shape_of
from confide.client.answer import Answer
from confide.client.held import TrustPolicy
from confide.client.relayed import relay_of
from confide.client.session import Session
from confide.errors import ConfideError, ConfigurationError, Unavailable
from confide.expectation import Expectation, parse_expectation, parse_expectation_toml
from confide.trust.roots import VENDOR_ROOTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import httpx2
    import openai

    from confide.channel.padding import StreamShape
    from confide.client.answer import Receipt, ReceiptKeeper
    from confide.client.relayed import Relay
    from confide.ports import Clock, Entropy
    from confide.trust.roots import Roots

__all__ = [
    "async_openai_client",
    "openai_client",
    "read_policy",
    "receipt_of",
    "session_of",
]

# From: RFC 6761 §6.4: `.invalid` resolves nowhere.
_BASE_URL = "https://confide.invalid/v1"
_MAX_POLICY_BYTES = 1024 * 1024
_AN_HOUR = timedelta(hours=1)


def openai_client(
    url: str | Sequence[str] = (),
    *,
    policy: Expectation | str | Path,
    roots: Roots = VENDOR_ROOTS,
    receipts: ReceiptKeeper | str | Path | None = None,
    max_evidence_age: timedelta = _AN_HOUR,
    continuity: bool = False,
    relay: str | None = None,
    directory_key: str | None = None,
    cells: int | None = None,
    cadence_ms: int | None = None,
    api_key: str = "confide",
    clock: Clock | None = None,
    entropy: Entropy | None = None,
    **options: Any,
) -> openai.OpenAI:
    """
    Return an `openai.OpenAI` whose every request goes sealed to a proven node.

    `url` is one node or several candidates in order, `policy` an Expectation or the path of one
    (TOML or canonical JSON), `roots` the vendors' unless a simulated platform's are passed.
    `receipts` is the file where receipts are kept, below the data directory unless it is named,
    or a keeper (`UnsafeKeepNone`). `relay` is the address of a relay instead of a `url`, and
    `directory_key` the key of its operator (docs/protocols/relay.md). `cells` asks for answers in
    cells of that size, `cadence_ms` for a cell of a stream every so often (channel.md §5).
    `options` are those of `openai.OpenAI` that are not about where requests go. The node is
    proven at the first request; `session_of(client)` says what is known.

    Calls raise errors of our tree that are also `openai.APIError`. **Does not check** whether an
    answer is right. Raises `ConfigurationError` and `FormatError` for unusable arguments.
    """
    trust = TrustPolicy(read_policy(policy), roots, max_evidence_age, continuity)
    path = (relay_of(relay, directory_key), shape_of(cells, cadence_ms))
    session = _session(url, trust, receipts, path, (clock, entropy))
    sdk = _sdk()
    http = blocking_client(session, translate=partial(_of_both_trees, sdk))
    made: openai.OpenAI = sdk.OpenAI(
        base_url=_BASE_URL, http_client=http, api_key=api_key, **_own(options)
    )
    return made


def async_openai_client(
    url: str | Sequence[str] = (),
    *,
    policy: Expectation | str | Path,
    roots: Roots = VENDOR_ROOTS,
    receipts: ReceiptKeeper | str | Path | None = None,
    max_evidence_age: timedelta = _AN_HOUR,
    continuity: bool = False,
    relay: str | None = None,
    directory_key: str | None = None,
    cells: int | None = None,
    cadence_ms: int | None = None,
    api_key: str = "confide",
    clock: Clock | None = None,
    entropy: Entropy | None = None,
    **options: Any,
) -> openai.AsyncOpenAI:
    """Return an `openai.AsyncOpenAI`, as `openai_client` does; it belongs to one event loop."""
    trust = TrustPolicy(read_policy(policy), roots, max_evidence_age, continuity)
    path = (relay_of(relay, directory_key), shape_of(cells, cadence_ms))
    session = _session(url, trust, receipts, path, (clock, entropy))
    sdk = _sdk()
    http = answer_client(session, translate=partial(_of_both_trees, sdk))
    made: openai.AsyncOpenAI = sdk.AsyncOpenAI(
        base_url=_BASE_URL, http_client=http, api_key=api_key, **_own(options)
    )
    return made


def receipt_of(response: object) -> Receipt:
    """
    Return the verified receipt of what an SDK call returned.

    Takes a parsed answer, a raw response, or a stream that was read to its end. `LookupError` for
    anything else, for an answer without a receipt, and for one whose client is gone: its receipt
    is in the store, under the id that is `response._request_id`.
    """
    found = _answer_of(response)
    if found is not None:
        if found.receipt is None:
            raise LookupError("no receipt: the stream has not ended, or none was asked for")
        return found.receipt
    request_id = getattr(response, "_request_id", None)
    receipt = _receipts().get(request_id) if isinstance(request_id, str) else None
    if receipt is None:
        raise LookupError("no receipt of this is at hand; look for it in the store")
    return receipt


def session_of(client: openai.OpenAI | openai.AsyncOpenAI) -> Session:
    """Return the session under a client of this module; `LookupError` for any other client."""
    session = getattr(client._client, "sender", None)  # noqa: SLF001 - the SDK has no other way
    if isinstance(session, Session):
        return session
    raise LookupError("not a client of confide")


def _answer_of(response: object) -> Answer | None:
    # A raw response of httpx2, a stream or a wrapper that holds one, under the SDK's names.
    for name in ("", "response", "http_response", "_response", "_raw_stream"):
        inner = getattr(response, name, None) if name else response
        extensions = getattr(inner, "extensions", None)
        answer = extensions.get(ANSWER) if isinstance(extensions, dict) else None
        if isinstance(answer, Answer):
            return answer
        if name == "_raw_stream" and inner is not None:
            return _answer_of(inner)
    return None


@lru_cache(maxsize=1)
def _receipts() -> WeakValueDictionary[str, Receipt]:
    # Answers that the SDK parsed carry no more than an id. Their sessions hold the receipts.
    return WeakValueDictionary()


def _register(receipt: Receipt) -> None:
    _receipts()[receipt.id] = receipt


def _session(
    url: str | Sequence[str],
    trust: TrustPolicy,
    receipts: ReceiptKeeper | str | Path | None,
    path: tuple[Relay | None, StreamShape | None],
    world: tuple[Clock | None, Entropy | None],
) -> Session:
    (relay, shape), (clock, entropy) = path, world
    return Session(
        (url,) if isinstance(url, str) else tuple(url),
        trust,
        keeper=_keeper(receipts),
        clock=clock or SystemClock(),
        entropy=entropy or SystemEntropy(),
        on_receipt=_register,
        relay=relay,
        shape=shape,
    )


def _keeper(receipts: ReceiptKeeper | str | Path | None) -> ReceiptKeeper:
    if receipts is None:
        environment = os.environ  # noqa: TID251 - a library has no command line that reads it
        return ReceiptDatabase(Paths.from_environment(environment).receipts)
    if isinstance(receipts, str | Path):
        return ReceiptDatabase(Path(receipts))
    return receipts


def read_policy(policy: Expectation | str | Path) -> Expectation:
    """Return an Expectation, or read its file. Raises `ConfigurationError`, `FormatError`."""
    if isinstance(policy, Expectation):
        return policy
    path = Path(policy)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"policy {path} cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_POLICY_BYTES:
        raise ConfigurationError(f"policy {path} is larger than {_MAX_POLICY_BYTES} bytes")
    if path.suffix != ".toml":
        return parse_expectation(raw.removesuffix(b"\n"))
    try:
        return parse_expectation_toml(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"policy {path} is not UTF-8") from error


def _own(options: Mapping[str, Any]) -> dict[str, Any]:
    taken = {"base_url", "http_client", "websocket_base_url"} & options.keys()
    if taken:
        raise ConfigurationError(f"{', '.join(sorted(taken))}: requests go to proven nodes only")
    return dict(options)


def _sdk() -> Any:
    try:
        import openai  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise ImportError("this needs the OpenAI SDK: pip install 'confide[openai]'") from error
    return openai


def _of_both_trees(sdk: Any, error: ConfideError, request: httpx2.Request) -> Exception:
    """
    Return `error` as an exception that the SDK passes on as it is, and never retries.

    `APIConnectionError` says that trying again is harmless, and is used where nothing was sent.
    """
    base: type[Exception] = sdk.APIError
    if isinstance(error, NotSent):
        base = sdk.APIConnectionError
    elif isinstance(error, Unavailable) and was_timeout(error):
        base = sdk.APITimeoutError
    ours = type(error)
    made = type(ours.__name__, (ours, base), {"__module__": ours.__module__})
    # Built by hand: the constructors of the two trees want different things.
    found: Exception = made.__new__(made, *error.args)
    found.__dict__.update(error.__dict__)
    for name, value in (
        ("message", str(error)),
        ("request", request),
        ("body", None),
        ("code", str(getattr(error, "reason", "") or "") or None),
        ("param", None),
        ("type", "confide_error"),
    ):
        found.__dict__[name] = value
    return found
