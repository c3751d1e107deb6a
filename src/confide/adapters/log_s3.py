"""The `LogStore` port on an S3-compatible object store: the way off one machine. log.md §8.7.

An object is whole and durable once its PUT is answered. Requests are signed with AWS Signature
Version 4 (the payload's SHA-256 is signed too); objects are addressed by path. The public ones can
be served by the store itself.

A second writer is excluded by the object `lock`, made only where there is none. It holds a token
that stays in a local directory, so that this writer, and no other, goes on after a crash.
"""

from __future__ import annotations

import hashlib
import hmac
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import httpx2

from confide.adapters.durable import SystemDisk, take_lock, write_durably
from confide.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from pathlib import Path

    from confide.ports import Clock, Entropy

__all__ = ["ObjectPlace", "S3Log", "WriterToken", "parse_object_url", "sign_request"]

_LOCK: Final = "lock"
_TOKEN: Final = "token"  # noqa: S105 - the name of a file
# Tiles have 8 KiB, bundles of ours 8.5 KiB, a head with many cosignatures some 100 KiB.
_MAX_BYTES: Final = 1024 * 1024
_AT_ONCE: Final = 16
_TIMEOUT: Final = httpx2.Timeout(connect=5.0, read=30.0, write=30.0, pool=30.0)
_SERVICE: Final = "s3"
_TERMINATOR: Final = "aws4_request"
_ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """
    Where the objects are, and the key that may write them.

    `endpoint` is scheme and host, `prefix` empty or with a slash at its end.
    """

    endpoint: str
    bucket: str
    prefix: str
    region: str
    access_key_id: str
    secret_key: str = field(repr=False)


def parse_object_url(url: str, *, region: str, access_key_id: str, secret_key: str) -> ObjectPlace:
    """Return the place that `https://host/bucket/prefix` names. Raises `ConfigurationError`."""
    parts = urlsplit(url)
    bucket, _, prefix = parts.path.strip("/").partition("/")
    if parts.scheme not in ("https", "http") or not parts.netloc or not bucket or parts.query:
        raise ConfigurationError("an object store is named as https://host/bucket/prefix")
    if not access_key_id or not secret_key:
        raise ConfigurationError(
            "an object store needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    return ObjectPlace(
        endpoint=f"{parts.scheme}://{parts.netloc}",
        bucket=bucket,
        prefix=f"{prefix}/" if prefix else "",
        region=region,
        access_key_id=access_key_id,
        secret_key=secret_key,
    )


def sign_request(
    place: ObjectPlace,
    method: str,
    path: str,
    *,
    headers: Mapping[str, str],
    payload_sha256: str,
    now: datetime,
) -> dict[str, str]:
    """
    Return `headers` (lower-case names, `host` among them) with the signature of the request.

    `path` is percent-encoded already, and there is no query. From: AWS Signature Version 4.
    """
    moment = f"{now:%Y%m%dT%H%M%SZ}"
    scope = f"{moment[:8]}/{place.region}/{_SERVICE}/{_TERMINATOR}"
    signed = {**headers, "x-amz-content-sha256": payload_sha256, "x-amz-date": moment}
    names = ";".join(sorted(signed))
    lines = "".join(f"{name}:{signed[name].strip()}\n" for name in sorted(signed))
    request = f"{method}\n{path}\n\n{lines}\n{names}\n{payload_sha256}"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = f"AWS4{place.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"{_ALGORITHM}\n{moment}\n{scope}\n{digest}"
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{place.access_key_id}/{scope}"
    signed["authorization"] = (
        f"{_ALGORITHM} Credential={credential},SignedHeaders={names},Signature={signature}"
    )
    return signed


class WriterToken:
    """What makes this machine the writer of a log in an object store; a local lock with it."""

    def __init__(self, folder: Path, *, entropy: Entropy) -> None:
        """Read or draw the token in `folder`. Raises `ConfigurationError`, `Unavailable`."""
        disk = SystemDisk()
        try:
            disk.make_directory(folder)
            self._handle = take_lock(disk, folder / _LOCK, "the log's directory")
            token = disk.read(folder / _TOKEN)
        except OSError as error:
            raise Unavailable(f"the log's directory cannot be used: {error.strerror}") from error
        if token is None:
            token = entropy.token(32).hex().encode()
            write_durably(disk, folder, ((_TOKEN, token),), known=set())
        self.value = token
        self._disk = disk

    def close(self) -> None:
        """Give the local lock back; the token stays."""
        self._disk.unlock(self._handle)


class S3Log:
    """A log in an object store. Opening it takes the lock object; `close` removes it."""

    def __init__(
        self,
        place: ObjectPlace,
        *,
        token: WriterToken,
        clock: Clock,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        """
        Open or begin the log at `place`.

        Raises `ConfigurationError` where another writer has it, `Unavailable`.
        """
        self._place = place
        self._clock = clock
        self._token = token
        self._host = urlsplit(place.endpoint).netloc
        self._client = httpx2.Client(
            timeout=_TIMEOUT, trust_env=False, follow_redirects=False, transport=transport
        )
        self._workers = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="log-s3")
        try:
            self._take()
        except BaseException:
            self._workers.shutdown()
            self._client.close()
            raise

    def _take(self) -> None:
        answer = self._ask("PUT", _LOCK, self._token.value, {"if-none-match": "*"})
        if answer.status_code == 200:
            return
        if answer.status_code not in (409, 412):
            raise _refused(answer)
        holder = self.read(_LOCK) or b""
        if not hmac.compare_digest(holder, self._token.value):
            raise ConfigurationError(
                "another writer has the log in this object store; stop it, and remove the object "
                "`lock` only when it is sure to be gone"
            )

    def read(self, name: str) -> bytes | None:
        """Return an object, or None where there is none."""
        answer = self._ask("GET", name)
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise _refused(answer)
        if len(answer.content) > _MAX_BYTES:
            raise Unavailable(f"an object of more than {_MAX_BYTES} bytes")
        return answer.content

    def add(self, files: Sequence[tuple[str, bytes]]) -> None:
        """Write new objects; durable, each whole, when this returns."""
        found = list(self._workers.map(lambda each: self._ask("PUT", *each), files))
        for answer in found:
            if answer.status_code != 200:
                raise _refused(answer)

    def replace(self, name: str, data: bytes) -> None:
        """Put `data` in the place of an object."""
        self.add(((name, data),))

    def discard_partial(self, names: Sequence[str]) -> None:
        """Leave partial tiles where they are: a rule of the bucket may remove what ends in .p/W."""

    def close(self) -> None:
        """Let another writer in."""
        try:
            self._ask("DELETE", _LOCK)
        finally:
            self._workers.shutdown()
            self._client.close()
            self._token.close()

    def _ask(
        self, method: str, name: str, body: bytes = b"", more: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        path = quote(f"/{self._place.bucket}/{self._place.prefix}{name}", safe="/-_.~")
        headers = sign_request(
            self._place,
            method,
            path,
            headers={"host": self._host, **(more or {})},
            payload_sha256=hashlib.sha256(body).hexdigest(),
            now=self._clock.now(),
        )
        try:
            return self._client.request(
                method,
                self._place.endpoint + path,
                content=body if method == "PUT" else None,
                headers=headers,
            )
        except httpx2.HTTPError as error:
            raise Unavailable(f"no answer of the object store: {type(error).__name__}") from error


def _refused(answer: httpx2.Response) -> Unavailable:
    return Unavailable(f"the object store answered {answer.status_code}")
