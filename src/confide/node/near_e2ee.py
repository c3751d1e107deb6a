"""Whether a call to the NEAR face has sealed fields: its headers, the opened request, the answer.

Clauses: docs/protocols/near-face.md §5. Every header of the protocol stands once or not at all, and
a header without the others that it needs is refused: a caller must never believe that something
was sealed which was not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from confide.channel.near_answer import AnswerSealer, encode_json
from confide.channel.near_request import SEALED_ROUTES, NotProtected, open_request
from confide.channel.near_seal import FieldScheme, client_key
from confide.crypto.aead import OpenError
from confide.errors import FormatError, Reason, RemoteProtocolError
from confide.inference.faults import ApiFault, RequestRefused
from confide.node.near_keys import SigningAlgorithm
from confide.wire.faces import Way
from confide.wire.json import JsonLimits, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import NoReturn

    from confide.node.near_keys import NearKeys
    from confide.ports import Entropy
    from confide.wire.json import JsonValue

__all__ = ["E2eeHeaders", "OpenedRequest", "not_hidden", "open_sealed", "read_headers"]

_ALGORITHM: Final = b"x-signing-algo"
_CLIENT_KEY: Final = b"x-client-pub-key"
_VERSION: Final = b"x-encryption-version"
_ALL: Final = b"x-encrypt-all-fields"
_MODEL_KEY: Final = b"x-model-pub-key"
_NAMES: Final = frozenset({_ALGORITHM, _CLIENT_KEY, _VERSION, _ALL, _MODEL_KEY})
_LIMITS: Final = JsonLimits(max_bytes=32 * 1024 * 1024, max_depth=64)
_V1: Final = (
    "X-Encryption-Version 1 with ed25519 is refused: its two directions use different ciphers and "
    "published clients cannot open the answers. Send X-Encryption-Version: 2."
)


def _refuse(code: str, message: str, status: int = 400) -> NoReturn:
    raise RequestRefused(ApiFault(status, "invalid_request_error", code, message))


def _undecryptable() -> NoReturn:
    # One text for every cause: a caller learns nothing about keys from it.
    _refuse("decryption_failed", "Decryption failed")


def not_hidden() -> NoReturn:
    """Refuse a call in clear on a connection that does not end in this node."""
    _refuse(
        "plaintext_refused",
        "This connection does not end in the attested node, and the call is not encrypted: use "
        "POST /ohttp, the node's own TLS port, or X-Client-Pub-Key with X-Encryption-Version: 2.",
        403,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class E2eeHeaders:
    """What the headers of one call ask for. `model_key` is the key it was sealed to, if named."""

    scheme: FieldScheme
    client_key: bytes
    all_fields: bool
    model_key: bytes | None


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> E2eeHeaders | None:
    """
    Return what is asked for, None where nothing is. Raises `RequestRefused` (400).

    `X-Model-Pub-Key` alone asks for nothing: clients that seal no fields choose a machine by it.
    """
    found: dict[bytes, str] = {}
    for name, value in headers:
        if (lower := name.lower()) in _NAMES:
            if lower in found:
                _refuse("invalid_encryption_headers", "An encryption header stands twice.")
            found[lower] = value.decode("latin-1").strip()
    if not found.keys() - {_MODEL_KEY}:
        return None
    if _ALGORITHM not in found or _CLIENT_KEY not in found:
        _refuse(
            "invalid_encryption_headers",
            "Encryption needs X-Signing-Algo and X-Client-Pub-Key together.",
        )
    word = found[_ALGORITHM].lower()
    if word not in set(FieldScheme):
        _refuse("invalid_encryption_headers", "X-Signing-Algo is ecdsa or ed25519.")
    scheme = FieldScheme(word)
    _require_version(found.get(_VERSION, "1"), scheme)
    if found.get(_ALL, "false") not in {"true", "false"}:
        _refuse("invalid_encryption_headers", "X-Encrypt-All-Fields is true or false.")
    model_key = None
    try:
        caller = client_key(scheme, found[_CLIENT_KEY])
        if _MODEL_KEY in found:
            model_key = bytes.fromhex(found[_MODEL_KEY].removeprefix("0x"))
    except (OpenError, ValueError):
        _refuse("invalid_encryption_headers", "A public key is not hex of a key of X-Signing-Algo.")
    return E2eeHeaders(
        scheme=scheme,
        client_key=caller,
        all_fields=found.get(_ALL) == "true",
        model_key=model_key,
    )


def _require_version(text: str, scheme: FieldScheme) -> None:
    if text not in {"1", "2"}:
        _refuse("invalid_encryption_headers", "X-Encryption-Version is 1 or 2.")
    # With ecdsa both versions are one and the same form.
    if text == "1" and scheme is FieldScheme.ED25519:
        _refuse("encryption_version_refused", _V1)


@dataclass(frozen=True, slots=True)
class OpenedRequest:
    """A request in clear, the keys that opened it, and what seals the answer."""

    body: bytes
    keys: NearKeys
    way: Way
    key_id: int
    sealer: AnswerSealer


def open_sealed(
    path: str, body: bytes, asked: E2eeHeaders, known: Sequence[NearKeys], entropy: Entropy
) -> OpenedRequest:
    """
    Open a request with the first keys of `known` that fit.

    Raises `RequestRefused` (400): a route or a member that this protocol leaves readable is named,
    everything else is "Decryption failed".
    """
    if path not in SEALED_ROUTES:
        _refuse(
            "not_protected",
            "Encrypted fields would leave the answers of this route readable: use POST /ohttp or "
            "the node's own TLS port.",
        )
    request = _object(body)
    algorithm = SigningAlgorithm(asked.scheme.value)
    for keys in _named(known, asked, algorithm):
        try:
            opened = open_request(
                path, request, keys.field_key(asked.scheme), all_fields=asked.all_fields
            )
        except OpenError:
            continue
        except NotProtected as error:
            _refuse(
                "not_protected",
                f"{error.member} would stay readable on the way"
                + ("." if asked.all_fields else ", perhaps unless X-Encrypt-All-Fields is true."),
            )
        _admit(keys, opened.marks)
        ecdsa = asked.scheme is FieldScheme.ECDSA
        return OpenedRequest(
            body=encode_json(opened.request),
            keys=keys,
            way=Way.NEAR_E2EE_ECDSA if ecdsa else Way.NEAR_E2EE_ED25519,
            key_id=keys.ids[algorithm],
            sealer=AnswerSealer(asked.scheme, asked.client_key, entropy.token),
        )
    _undecryptable()


def _admit(keys: NearKeys, marks: tuple[int, ...]) -> None:
    try:
        keys.window.admit(marks)
    except RemoteProtocolError as error:
        if error.reason is Reason.REPLAYED:
            words = ("replayed", "A field of this request was sent before: seal each field anew.")
        else:
            words = ("node_busy", "Too many sealed fields for these keys; use POST /ohttp.")
        _refuse(*words, error.status_hint)


def _named(
    known: Sequence[NearKeys], asked: E2eeHeaders, algorithm: SigningAlgorithm
) -> list[NearKeys]:
    if asked.model_key is None:
        return list(known)
    wanted = asked.model_key[-64:] if algorithm is SigningAlgorithm.ECDSA else asked.model_key
    found = [keys for keys in known if keys.public_key(algorithm) == wanted]
    if not found:
        _refuse("invalid_encryption_headers", "X-Model-Pub-Key is not a key of this node.")
    return found


def _object(body: bytes) -> dict[str, JsonValue]:
    try:
        value = parse_json(body, what="request", reason=Reason.REQUEST_FORMAT, limits=_LIMITS)
    except FormatError as error:
        _refuse("invalid_json", f"The body is refused: {error.what}.")
    if not isinstance(value, dict):
        _refuse("invalid_json", "The body is not a JSON object.")
    return value
