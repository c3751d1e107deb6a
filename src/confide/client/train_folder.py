"""What the owner of a training keeps: keys, salts, what was asked, and how far it came.

docs/protocols/training-node.md §6. One private folder for one job, made before anything is sent, so
that an interrupted training can be taken up again. Whoever has the folder opens the results.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from confide.adapters.files import write_atomically
from confide.crypto.kem import load_private_key
from confide.errors import ConfigurationError, Reason, Unavailable
from confide.expectation import parse_expectation
from confide.training.any_recipe import read_any_recipe
from confide.training.dataset import Commitment, read_commitment
from confide.training.shares import ENGINES
from confide.trust.roots import VENDOR_ROOTS, encode_roots_file, parse_roots_file
from confide.wire.json import JsonValue, Members, jcs, parse_json
from confide.wire.ohttp import Kem

if TYPE_CHECKING:
    from confide.crypto.kem import PrivateKey
    from confide.expectation import Expectation
    from confide.ports import Entropy
    from confide.training.any_recipe import AnyRecipe
    from confide.training.shares import Engine
    from confide.trust.roots import Roots

__all__ = ["RESULT", "OwnedFile", "OwnerFolder", "TrainingState"]

# Where opened results stand; it is there whole and verified, or not there.
RESULT: Final = "tuned"
_TYPE: Final = "confide/training-folder/v1"
_REASON: Final = Reason.TRAINING_FORMAT
_MAX_BYTES: Final = 16 * 1024 * 1024
_SECRETS: Final = ("checkpoint.key", "dataset.salt", "nonce", "recipient.key", "validation.salt")
_TOKEN: Final = "token"  # noqa: S105 - the name of a file


@dataclass(frozen=True, slots=True)
class OwnedFile:
    """Rows on this machine: where, what they are committed to as, and what the node calls them."""

    path: Path
    size: int
    commitment: Commitment
    upload: str | None = None
    file: str | None = None

    def value(self) -> dict[str, JsonValue]:
        """Return the JSON value."""
        return {
            "path": str(self.path),
            "size": self.size,
            "commitment": self.commitment.value(),
            "upload": self.upload,
            "file": self.file,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """
    How far a training came. `run` is a public name under which its job is found again.

    `recipe` is None where OpenAI's hyperparameters were sent instead. `job` is the node's id.
    `engine` is what links nodes that train together, where there are several.
    """

    run: bytes
    node: str
    recipe: AnyRecipe | None
    data: OwnedFile | None
    validation: OwnedFile | None = None
    job: str | None = None
    engine: Engine = "ring"

    def encode(self) -> bytes:
        """Return the file."""
        return jcs(
            {
                "type": _TYPE,
                "run": self.run.hex(),
                "node": self.node,
                "recipe": None if self.recipe is None else self.recipe.value(),
                "data": None if self.data is None else self.data.value(),
                "validation": None if self.validation is None else self.validation.value(),
                "job": self.job,
                "engine": self.engine,
            }
        )


def _parse_state(raw: bytes) -> TrainingState:
    top = Members(parse_json(raw, what="job.json", reason=_REASON), what="job.json", reason=_REASON)
    top.choice("type", (_TYPE,))
    state = TrainingState(
        run=top.hexes("run", 16),
        node=top.text("node"),
        recipe=None if top.null("recipe") else read_any_recipe(top.value("recipe")),
        data=_parse_file(top, "data"),
        validation=_parse_file(top, "validation"),
        job=_optional(top, "job"),
        engine=top.choice("engine", ENGINES),
    )
    top.end()
    return state


def _parse_file(top: Members, name: str) -> OwnedFile | None:
    if top.null(name):
        return None
    members = top.members(name)
    found = OwnedFile(
        Path(members.text("path")),
        members.integer("size", low=1),
        read_commitment(members.value("commitment")),
        _optional(members, "upload"),
        _optional(members, "file"),
    )
    members.end()
    return found


def _optional(members: Members, name: str) -> str | None:
    return None if members.null(name) else members.text(name, max_chars=128)


@dataclass(frozen=True, slots=True)
class OwnerFolder:
    """
    One training in its folder.

    `nonce`, `checkpoint_key` and `salt` are 32 bytes, `recipient` opens the results, `token` is
    what files and jobs belong to on the node.
    """

    path: Path
    expectation: Expectation
    roots: Roots
    state: TrainingState
    token: str = field(repr=False)
    nonce: bytes = field(repr=False)
    checkpoint_key: bytes = field(repr=False)
    recipient: PrivateKey = field(repr=False)
    salt: bytes = field(repr=False)
    validation_salt: bytes = field(repr=False)

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        node: str,
        expectation: Expectation,
        roots: Roots,
        recipe: AnyRecipe | None,
        entropy: Entropy,
        engine: Engine = "ring",
    ) -> Self:
        """
        Draw the keys of a new training and keep them in `path`, which must be new or empty.

        Raises `ConfigurationError`, and `Unavailable` with nothing left behind.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigurationError(
                f"{path} exists and is not an empty directory; name another --output, or take up "
                f"what is in it with confide train resume {path}"
            )
        made = not path.exists()
        state = TrainingState(
            run=entropy.token(16), node=node, recipe=recipe, data=None, engine=engine
        )
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            for name in _SECRETS:
                write_atomically(path / name, entropy.token(32).hex().encode() + b"\n")
            write_atomically(path / _TOKEN, f"confide-{entropy.token(24).hex()}\n".encode())
            write_atomically(path / "expectation.json", expectation.canonical())
            if roots.simulated:
                write_atomically(path / "roots.json", encode_roots_file(roots))
            write_atomically(path / "job.json", state.encode())
        except (OSError, Unavailable) as error:
            _remove(path, whole=made)
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise Unavailable(f"{path} cannot be written: {why}") from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read the folder of a training. Raises `ConfigurationError`, `FormatError`."""
        if not (path / "job.json").is_file():
            raise ConfigurationError(f"{path} holds no training (no job.json in it)")
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(f"{path} may be read by others; chmod 700 {path}")
        keys = {name: _secret(path / name) for name in _SECRETS}
        roots = VENDOR_ROOTS
        if (path / "roots.json").exists():
            roots = parse_roots_file(_read(path / "roots.json"))
        return cls(
            path=path,
            expectation=parse_expectation(_read(path / "expectation.json")),
            roots=roots,
            state=_parse_state(_read(path / "job.json")),
            token=_read(path / _TOKEN).decode("ascii", "replace").strip(),
            nonce=keys["nonce"],
            checkpoint_key=keys["checkpoint.key"],
            recipient=load_private_key(Kem.X_WING, keys["recipient.key"]),
            salt=keys["dataset.salt"],
            validation_salt=keys["validation.salt"],
        )

    @property
    def result(self) -> Path:
        """Where opened and verified results stand, once they do."""
        return self.path / RESULT

    @property
    def done(self) -> bool:
        """Whether results were opened and verified."""
        return self.result.is_dir()

    def now_at(self, state: TrainingState) -> Self:
        """Keep `state`; return the folder with it. Raises `Unavailable`."""
        write_atomically(self.path / "job.json", state.encode())
        return replace(self, state=state)

    def moved(self, node: str) -> Self:
        """
        Keep that the training goes on at another `node`, which has neither rows nor job yet.

        Raises `Unavailable`.
        """
        state = self.state
        data, apart = (
            None if each is None else replace(each, upload=None, file=None)
            for each in (state.data, state.validation)
        )
        return self.now_at(replace(state, node=node, data=data, validation=apart, job=None))

    def remove(self) -> None:
        """Remove everything: for a training of which nothing was sent."""
        _remove(self.path, whole=True)


def _remove(path: Path, *, whole: bool) -> None:
    if whole:
        shutil.rmtree(path, ignore_errors=True)
        return
    for each in path.iterdir():
        each.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > _MAX_BYTES:
        raise ConfigurationError(f"{path} is larger than {_MAX_BYTES} bytes")
    return raw


def _secret(path: Path) -> bytes:
    try:
        secret = bytes.fromhex(_read(path).decode("ascii").removesuffix("\n"))
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ConfigurationError(
            f"{path} is not 64 hex digits: the folder of this training is broken"
        )
    return secret
