"""What a job leaves, on its way from the training process to its owner: sealed as it comes.

docs/protocols/training-node.md §3. The process gives its result in plain through its pipe; here it
becomes tar files that are sealed to the recipient while they are written. Blocks: for the thread
that listens to the process.
"""

from __future__ import annotations

import hashlib
import tarfile
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from confide.crypto.sealed_file import seal_file_to
from confide.errors import Reason, RemoteProtocolError, Unavailable
from confide.inference.weights import weights_manifest
from confide.node.train_store import ResultFile, result_name
from confide.wire.json import Members

if TYPE_CHECKING:
    from pathlib import Path

    from confide.adapters.sealed_store import SealedStore, SealedWriter
    from confide.crypto.kem import PublicKey
    from confide.crypto.sealed_file import FileSealer
    from confide.inference.weights import WeightsManifest
    from confide.ports import Entropy
    from confide.wire.json import JsonValue

__all__ = ["Results", "read_output_file"]

_BLOCK: Final = 512
_MODE: Final = 0o644
_PIECE_BYTES: Final = 1024 * 1024


def read_output_file(value: JsonValue) -> tuple[str, str, int]:
    """Read the payload of a FILE frame: output, name, length. Raises `FormatError`."""
    members = Members(value, what="file of a result", reason=Reason.TRAINING_FORMAT)
    output = members.text("output", max_chars=32)
    name, size = members.text("name", max_chars=256), members.integer("bytes")
    members.end()
    return output, name, size


class _Sealed:
    """One file that is sealed to the owner while it is written."""

    def __init__(self, writer: SealedWriter, sealer: FileSealer) -> None:
        self._writer = writer
        self._sealer = sealer

    def write(self, data: bytes) -> None:
        for piece in self._sealer.write(data):
            self._writer.write(piece)

    def commit(self) -> tuple[int, bytes]:
        """Return the size and the SHA-256 of what the owner gets."""
        for piece in self._sealer.finish():
            self._writer.write(piece)
        self._writer.commit()
        return self._writer.size, self._sealer.sha256.digest()

    def abort(self) -> None:
        self._writer.abort()


class _Tar:
    """An uncompressed tar of plain files, named and nothing else: no owner, no time (3.1)."""

    def __init__(self, out: _Sealed) -> None:
        self.out = out
        self._digests: list[tuple[str, str]] = []
        self._name = ""
        self._left = self._padding = 0
        self._sha256 = hashlib.sha256()

    def begin(self, name: str, size: int) -> None:
        self.end()
        head = tarfile.TarInfo(name)
        head.size, head.mode = size, _MODE
        try:
            raw = head.tobuf(tarfile.USTAR_FORMAT, "utf-8", "strict")
        except ValueError as error:
            raise RemoteProtocolError("a file of the result does not fit into a tar") from error
        self.out.write(raw)
        self._name, self._left, self._padding = name, size, -size % _BLOCK
        self._sha256 = hashlib.sha256()

    def data(self, payload: bytes) -> None:
        if len(payload) > self._left:
            raise RemoteProtocolError("a file of the result is longer than it was said to be")
        self._left -= len(payload)
        self._sha256.update(payload)
        self.out.write(payload)

    def end(self) -> None:
        """End the present file, where there is one."""
        if self._left:
            raise RemoteProtocolError("a file of the result is shorter than it was said to be")
        if self._name:
            self.out.write(bytes(self._padding))
            self._digests.append((self._name, self._sha256.hexdigest()))
            self._name = ""

    def close(self) -> WeightsManifest:
        """End the tar; return the manifest of the folder that it unpacks to."""
        self.end()
        self.out.write(bytes(2 * _BLOCK))
        try:
            return weights_manifest(self._digests)
        except ValueError as error:
            raise RemoteProtocolError(f"the result is no folder of weights: {error}") from error


class Results:
    """
    The results of one attempt at a job, whole or gone after `abort`.

    `files` are what is whole, in order; `manifests` and `sealed` what the record says of them.
    """

    def __init__(
        self, store: SealedStore, *, recipient: PublicKey, job: str, owner: str, entropy: Entropy
    ) -> None:
        self.files: list[ResultFile] = []
        self.manifests: dict[str, WeightsManifest] = {}
        self.sealed: dict[str, bytes] = {}
        self._store = store
        self._recipient = recipient
        self._job = job
        self._owner = owner
        self._entropy = entropy
        self._output = ""
        self._tar: _Tar | None = None
        self._file_id = ""

    def file(self, value: JsonValue) -> None:
        """Take the head of a FILE frame. Raises `RemoteProtocolError`, `Unavailable`."""
        output, name, size = read_output_file(value)
        if output != self._output:
            self.end_outputs()
            self._file_id, out = self._begin(f"{output}.tar.sealed")
            self._output, self._tar = output, _Tar(out)
        if self._tar is not None:
            self._tar.begin(name, size)

    def data(self, payload: bytes) -> None:
        """Take a DATA frame."""
        if self._tar is None:
            raise RemoteProtocolError("data of no file")
        self._tar.data(payload)

    def end_outputs(self) -> None:
        """The present output has no more files."""
        if self._tar is None:
            return
        tar, output = self._tar, self._output
        if output in self.manifests:
            raise RemoteProtocolError("an output of the job came twice")
        self.manifests[output] = tar.close()
        self._keep(self._file_id, f"{output}.tar.sealed", *tar.out.commit(), name=output)
        self._tar, self._output = None, ""

    def seal(self, name: str, data: bytes) -> None:
        """Seal `data` to the owner as the file `<name>.sealed`."""
        filename = f"{name}.sealed"
        file_id, out = self._begin(filename)
        try:
            for at in range(0, len(data), _PIECE_BYTES):
                out.write(data[at : at + _PIECE_BYTES])
            size, digest = out.commit()
        except BaseException:
            out.abort()
            raise
        self._keep(file_id, filename, size, digest, name=name)

    def public(self, filename: str, data: bytes) -> None:
        """Keep `data`, which is no secret."""
        file_id = self._new_id()
        writer = self._store.begin(result_name(file_id))
        writer.write(data)
        writer.commit()
        self.files.append(ResultFile(file_id, self._owner, filename, len(data), 0))

    def checkpoint(self, filename: str, place: Path) -> None:
        """Name a sealed checkpoint among the files; it stays where it lies."""
        try:
            size = place.stat().st_size
        except OSError as error:
            raise Unavailable(f"a sealed checkpoint is gone: {error.strerror}") from error
        self.files.append(ResultFile(self._new_id(), self._owner, filename, size, 0, place))

    def abort(self) -> None:
        """Leave nothing behind but the checkpoints, which are not its own."""
        if self._tar is not None:
            self._tar.out.abort()
            self._tar = None
        for file in self.files:
            if file.place is None:
                with suppress(Unavailable):
                    self._store.remove(result_name(file.id))
        self.files.clear()

    def _new_id(self) -> str:
        return f"file-{self._entropy.token(12).hex()}"

    def _begin(self, filename: str) -> tuple[str, _Sealed]:
        file_id = self._new_id()
        sealer = seal_file_to(
            self._recipient,
            name=f"{self._job}/{filename}",
            ephemeral=self._entropy.token(32),
        )
        return file_id, _Sealed(self._store.begin(result_name(file_id)), sealer)

    def _keep(self, file_id: str, filename: str, size: int, digest: bytes, *, name: str) -> None:
        self.sealed[name] = digest
        self.files.append(ResultFile(file_id, self._owner, filename, size, 0))
