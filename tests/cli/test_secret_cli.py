"""`confide secret` as scripted sessions, against a desk of owners on this machine."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from owner_service import serving
from owner_world import (
    ALICE,
    BOB,
    CAROL,
    CONSORTIUM,
    DATASET,
    KEYS,
    MALLORY,
    OLD_CODE,
    SOLE,
    VALUE,
    MemoryLog,
    World,
    owners,
)
from runs import tell

from confide.adapters.clock import SystemClock
from confide.broker.owner_key import encode_owner_key, load_owner_key
from confide.errors import ReleaseRefused
from confide.expectation import parse_expectation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sessions import Cli, Session

    from confide.broker.owners import Owners

NAMES = ("alice", "bob", "carol", "mallory")
POLICY = b'type = "confide/policy/v1"\nname = "theirs"\nprofile = "strict"\n'


class Owner:
    """Somebody at a command line who knows the broker and has keys."""

    def __init__(self, cli: Cli, url: str, folder: Path) -> None:
        self.cli = cli
        self.url = url
        self.folder = folder
        for name in NAMES:
            seed = hashlib.sha256(f"owner {name}".encode()).digest()
            (folder / name).write_bytes(encode_owner_key(seed))

    def __call__(self, verb: str, *words: object, by: str = "alice", **options: Any) -> Session:
        """Run a verb with the broker named, signed by the owners `by`."""
        keys = [word for name in by.split() for word in ("--key", self.folder / name)]
        place = ("--broker", self.url, "--broker-key", options.get("key", KEYS.key.hex()))
        return self.cli("secret", verb, *words, *place, *keys, "--json")

    def value(self, raw: bytes = VALUE) -> Path:
        path = self.folder / "value"
        path.write_bytes(raw)
        return path


def broker(*configured: Owners) -> World:
    """A broker by the clock of this machine."""
    clock = SystemClock()
    return World(configured, clock=clock, log=MemoryLog(clock))  # type: ignore[arg-type]


@pytest.fixture
def here() -> World:
    """A broker with one owner."""
    return broker(SOLE)


@pytest.fixture
def owner(here: World, cli: Cli, tmp_path: Path) -> Iterator[Owner]:
    """Its owner at the command line."""
    with serving(here) as url:
        yield Owner(cli, url, tmp_path)


@pytest.fixture
def three() -> World:
    """A broker that three owners have to agree about."""
    return broker(CONSORTIUM)


@pytest.fixture
def together(three: World, cli: Cli, tmp_path: Path) -> Iterator[Owner]:
    """Three owners, each with a key of their own."""
    with serving(three) as url:
        yield Owner(cli, url, tmp_path)


def test_a_key_is_made_once_and_its_public_half_printed(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "owner"
    made = cli("secret", "keygen", file, "--json")
    assert made.code == 0
    assert load_owner_key(file.read_bytes()).public_key.hex() == made.result["owner"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().split()[1] not in made.out
    assert cli("secret", "keygen", file).code == 2


def test_from_put_to_revoked(owner: Owner, here: World) -> None:
    put = owner("put", DATASET, "--from", owner.value())
    assert (put.code, put.result["state"]) == (0, "held")
    held = here.desk.value(DATASET)
    assert held is not None
    assert held.value == VALUE
    released = owner("release", DATASET, "acme/state/agent", "--expectation", OLD_CODE.hex())
    assert (released.code, released.result["state"]) == (0, "in-force")
    assert released.result["log"].startswith("c2sp.org/tlog-proof@v1\n")
    assert here.open().hex() == released.result["statement"]
    assert here.open(resource="acme/state/agent") == here.open()
    listed = owner("ls").result
    assert [each["resource"] for each in listed["secrets"]] == [DATASET]
    assert [each["state"] for each in listed["releases"]] == ["in-force"]
    assert owner("revoke", released.result["statement"]).result["state"] == "revoked"
    with pytest.raises(ReleaseRefused):
        here.open()
    assert owner("rm", DATASET, held.version.hex()).result["state"] == "removed"
    assert here.desk.value(DATASET) is None
    gone = owner("rm", DATASET, held.version.hex())
    assert gone.code == 10
    assert gone.events[-1]["findings"][0]["reason"] == "resource-unknown"


def test_an_expectation_is_named_by_its_file_too(owner: Owner, here: World, tmp_path: Path) -> None:
    raw = tell().expectation
    (tmp_path / "expectation.json").write_bytes(raw)
    assert owner("release", DATASET, "--expectation", tmp_path / "expectation.json").code == 0
    assert here.open(parse_expectation(raw).digest)


def test_a_release_ends_when_it_was_said(owner: Owner) -> None:
    words = ("release", DATASET, "--expectation", OLD_CODE.hex())
    begun = owner(*words, "--from", "2099-01-01T00:00:00Z", "--days", "366")
    assert begun.result["state"] == "not-yet"
    ended = owner(*words, "--from", "2020-01-01T00:00:00Z", "--until", "2020-02-01T00:00:00Z")
    assert ended.result["state"] == "expired"
    for wrong in (
        ("--days", "367"),
        ("--days", "0"),
        ("--days", "1", "--until", "2099-01-01T00:00:00Z"),
        ("--until", "2020-01-01T00:00:00Z"),
        ("--until", "tomorrow"),
        ("--from", "2020-01-01T00:00:00Z", "--until", "2021-01-02T00:00:01Z"),
    ):
        assert owner(*words, *wrong).code == 2


def test_a_policy_is_read_before_anything_is_released_to_it(owner: Owner, here: World) -> None:
    file = owner.folder / "theirs.toml"
    file.write_bytes(POLICY.replace(b"profile", b"profil"))
    assert owner("policy", DATASET, file).code == 30
    file.write_bytes(POLICY)
    assert owner("policy", DATASET, file).result["state"] == "in-force"
    now = SystemClock().now()
    assert here.desk.policies(DATASET, now=now) == ((hashlib.sha256(POLICY).digest(), POLICY),)


def test_a_value_is_never_an_argument(owner: Owner, here: World) -> None:
    for words in (("hunter2",), ("hunter2", "--from", owner.value()), ("--value", "hunter2")):
        seen = owner("put", DATASET, *words)
        assert seen.code == 2
        assert "hunter2" not in seen.out + seen.err
    assert here.desk.value(DATASET) is None


def _typed(process: subprocess.Popen[bytes], keyboard: int) -> bytes:
    """Answer the four prompts, a wrong repetition among them; return what was shown."""
    assert process.stdout is not None
    shown = b""
    with process.stdout as screen:
        for typed in (b"hunter2\n", b"hunter3\n", b"hunter2\n", b"hunter2\n"):
            # The space comes once the terminal no longer echoes.
            while not shown.endswith((b"Value: ", b"confirmation: ")):
                piece = os.read(screen.fileno(), 1)
                assert piece, shown
                shown += piece
            os.write(keyboard, typed)
            shown += os.read(screen.fileno(), 1)
        shown += screen.read()
    assert process.wait() == 0, shown
    return shown


def test_a_value_is_asked_for_twice_and_not_shown(owner: Owner, here: World) -> None:
    place = ("--broker", owner.url, "--broker-key", KEYS.key.hex(), "--key", owner.folder / "alice")
    words = [sys.executable, "-m", "confide", "secret", "put", DATASET, *map(str, place)]
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        words,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        shown = _typed(process, keyboard)
        echoed, _, _ = select.select([keyboard], [], [], 0)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(keyboard)
    assert not echoed
    assert b"hunter" not in shown
    held = here.desk.value(DATASET)
    assert held is not None
    assert held.value == b"hunter2"


def test_a_value_has_a_length_and_somebody_who_gives_it(owner: Owner, here: World) -> None:
    for raw in (b"", bytes((1 << 20) + 1)):
        assert owner("put", DATASET, "--from", owner.value(raw)).code == 2
    assert owner("put", DATASET).code == 2
    assert owner("put", DATASET, "--from", owner.folder / "nothing").code == 2
    assert here.desk.value(DATASET) is None


def test_what_is_no_name_of_a_resource_is_said(owner: Owner) -> None:
    for name in ("dataset", "acme/secret", "acme/secret/Dataset", "acme/secret/a/b"):
        seen = owner("put", name, "--from", owner.value())
        assert seen.code == 2
        assert "REPOSITORY/TYPE/NAME" in seen.events[-1]["message"]
    assert owner("put", "other/secret/x", "--from", owner.value()).code == 2
    assert owner("release", DATASET, "lab/secret/x", "--expectation", OLD_CODE.hex()).code == 2


def test_three_owners_sign_one_file_one_after_the_other(
    together: Owner, three: World, cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "release"
    words = ("release", DATASET, "--expectation", OLD_CODE.hex())
    written = together(*words, "--out", file)
    assert (written.code, written.result["state"]) == (0, "written")
    early = cli("secret", "send", file, "--broker", together.url)
    assert early.code == 10
    assert "owner-threshold" in early.err
    assert "confide secret sign" in early.err
    for count, name in ((2, "bob"), (3, "carol")):
        signed = cli("secret", "sign", file, "--key", tmp_path / name, "--json")
        assert signed.result["signatures"] == count
        assert signed.result["says"]["releases"] == DATASET
        assert OLD_CODE.hex() in signed.result["says"]["to"]
    sent = cli("secret", "send", file, "--broker", together.url, "--json")
    assert sent.result["state"] == "in-force"
    assert three.open().hex() == written.result["statement"]
    again = cli("secret", "send", file, "--broker", together.url)
    assert again.code == 10
    assert "has this statement already" in again.err
    assert together(*words, "--out", file).code == 2


def test_several_keys_at_one_place_sign_at_once(together: Owner, three: World) -> None:
    put = together("put", DATASET, "--from", together.value(), by="alice bob carol")
    assert put.result["state"] == "held"
    assert three.desk.value(DATASET) is not None
    assert together("ls", by="bob carol").code == 0
    assert together("release", DATASET, "--expectation", OLD_CODE.hex(), by="alice bob").code == 10


def test_owners_change_once_the_old_and_the_new_signed(owner: Owner, here: World) -> None:
    keys = [word for who in (ALICE, BOB) for word in ("--owner", who.public_key.hex())]
    words = ("owners", "acme", *keys, "--threshold", "2")
    assert owner(*words).code == 10
    assert owner(*words, by="alice bob").result["state"] == "changed"
    assert here.desk.repositories() == {"acme": owners(2, ALICE, BOB).digest}
    assert owner("owners", "acme", *keys, "--threshold", "3").code == 30
    assert CAROL.public_key not in (ALICE.public_key, BOB.public_key)


def test_a_broker_that_is_not_the_one_that_is_known_gets_nothing(owner: Owner, here: World) -> None:
    seen = owner("put", DATASET, "--from", owner.value(), key=MALLORY.public_key.hex())
    assert seen.code == 20
    assert seen.events[-1]["advice"][0].startswith("This is no answer of the broker")
    assert here.desk.value(DATASET) is None
    assert owner("ls", key="short").code == 2


def test_somebody_elses_key_signs_nothing(owner: Owner, here: World) -> None:
    refused = owner("put", DATASET, "--from", owner.value(), by="mallory")
    assert refused.code == 10
    assert refused.events[-1]["findings"][0]["reason"] == "owner-signature"
    owner.value(b"no key")
    assert owner("ls", by="value").code == 30
    assert here.desk.value(DATASET) is None


def test_without_a_broker_or_a_key_it_says_what_to_name(cli: Cli, tmp_path: Path) -> None:
    # Neither is the local broker: that one is started where no word names another.
    half = cli("secret", "ls", "--broker", "http://127.0.0.1:1")
    assert half.code == 2
    assert "--broker-key HEX" in half.err
    (tmp_path / "x").write_bytes(b"{}")
    assert cli("secret", "send", tmp_path / "x").code == 30
    place = ("--broker", "http://127.0.0.1:1", "--broker-key", KEYS.key.hex())
    assert "--key FILE" in cli("secret", "ls", *place).err
    key = tmp_path / "key"
    assert cli("secret", "keygen", key).code == 0
    assert cli("secret", "ls", *place, "--key", key).code == 20


def test_what_a_person_reads_names_the_state_and_no_value(owner: Owner) -> None:
    words = ("--broker", owner.url, "--broker-key", KEYS.key.hex(), "--key", owner.folder / "alice")
    put = owner.cli("secret", "put", DATASET, "--from", owner.value(), *words)
    assert "taken: held" in put.out
    listed = owner.cli("secret", "ls", *words)
    assert DATASET in listed.out
    assert not re.search(VALUE.decode(), put.out + listed.out + put.err + listed.err)
