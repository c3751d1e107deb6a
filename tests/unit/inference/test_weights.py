"""Weights: the manifest against a second implementation, and every way a directory may differ."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import pytest

from confide.adapters.weights_dir import measure_weights, verify_weights
from confide.errors import ConfigurationError, Reason, RunRefused, Unavailable
from confide.inference.weights import differences, manifest_value, weights_manifest

if TYPE_CHECKING:
    from pathlib import Path

ONE = hashlib.sha256(b"one").hexdigest()
TWO = hashlib.sha256(b"two").hexdigest()

# "a.b" sorts before "a/b" as text and after it as a path: the order that changes the root.
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"\0" * 3_000_000,
    "a/b": b"deep",
    "a/c/d": b"deeper",
    "a.b": b"flat",
    "a-b": b"dash",
    "Z": b"upper",
    "ünïcode": b"",
    ".gitignore": b"ignored",
    ".git/HEAD": b"ignored",
    "a/.gitignore": b"counted: not at the top",
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    root = tmp_path / "weights"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


# weights.md 1.5, 1.6


def test_the_reference_implementation_finds_the_same_root_and_resources(weights: Path) -> None:
    hashing = pytest.importorskip("model_signing.hashing")
    payload = pytest.importorskip("model_signing._signing.signing").Payload
    statement = payload(hashing.Config().hash(weights)).statement.pb
    ours = measure_weights(weights)
    assert statement.subject[0].digest["sha256"] == ours.root_digest
    assert list(statement.predicate["resources"]) == manifest_value(ours)["resources"]


def test_the_reference_implementation_reads_our_statement(weights: Path) -> None:
    signing = pytest.importorskip("model_signing._signing.signing")
    hashing = pytest.importorskip("model_signing.hashing")
    ours = measure_weights(weights)
    payload = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "weights", "digest": {"sha256": ours.root_digest}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": manifest_value(ours),
    }
    assert signing.dsse_payload_to_manifest(payload) == hashing.Config().hash(weights)


def test_the_root_is_the_hash_of_the_digests_in_path_order() -> None:
    made = weights_manifest([("a.b", TWO), ("a/b", ONE)])
    assert [entry.name for entry in made.entries] == ["a/b", "a.b"]
    expected = hashlib.sha256(bytes.fromhex(ONE) + bytes.fromhex(TWO)).hexdigest()
    assert made.root_digest == expected


def test_the_order_of_the_input_does_not_matter() -> None:
    pairs = [("b", ONE), ("a/x", TWO), ("c", ONE)]
    assert weights_manifest(pairs) == weights_manifest(reversed(pairs))


# weights.md 1.3


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc",
        "a//b",
        "../up",
        "a/../b",
        "./a",
        "a/.",
        "a\\b",
        "a\nb",
        "a\x7f",
        "\udcff",
        "x" * 5000,
    ],
)
def test_a_name_that_two_machines_could_read_differently_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name"):
        weights_manifest([(name, ONE)])


@pytest.mark.parametrize("digest", ["", ONE[:-1], ONE.upper(), f"{ONE}\n", "g" * 64])
def test_a_digest_that_is_not_sha256_in_hex_is_refused(digest: str) -> None:
    with pytest.raises(ValueError, match="a digest"):
        weights_manifest([("model.safetensors", digest)])


def test_a_name_twice_and_nothing_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        weights_manifest([("a", ONE), ("b", ONE), ("a", TWO)])
    with pytest.raises(ValueError, match="at least one file"):
        weights_manifest([])


def test_differences_names_every_file() -> None:
    before = weights_manifest([("same", ONE), ("changed", ONE), ("gone", ONE)])
    after = weights_manifest([("same", ONE), ("changed", TWO), ("new", ONE)])
    assert differences(before, after) == (
        "'changed' has changed",
        "'gone' is missing",
        "'new' was not measured",
    )
    assert differences(before, before) == ()


def test_a_rename_that_keeps_the_root_is_still_a_difference() -> None:
    before, after = weights_manifest([("a", ONE)]), weights_manifest([("b", ONE)])
    assert before.root_digest == after.root_digest
    assert differences(before, after) == ("'a' is missing", "'b' was not measured")


# weights.md 1.1, 1.2


def test_a_link_is_refused_wherever_it_points(weights: Path) -> None:
    (weights / "a" / "link").symlink_to(weights / "config.json")
    with pytest.raises(ConfigurationError, match="'a/link' is a symbolic link"):
        measure_weights(weights)


def test_a_directory_behind_a_link_is_refused(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(weights)
    with pytest.raises(ConfigurationError, match="not a directory"):
        measure_weights(tmp_path / "link")


def test_what_is_neither_file_nor_directory_is_refused(weights: Path) -> None:
    os.mkfifo(weights / "pipe")
    with pytest.raises(ConfigurationError, match="'pipe' is neither"):
        measure_weights(weights)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least one file"):
        measure_weights(tmp_path)


def test_a_directory_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        measure_weights(tmp_path / "absent")


# weights.md 2.1


def test_unchanged_weights_verify(weights: Path) -> None:
    verify_weights(weights, measure_weights(weights))


@pytest.mark.parametrize("at", [0, 1_500_000, 2_999_999])
def test_one_flipped_byte_is_refused_and_the_file_named(weights: Path, at: int) -> None:
    manifest = measure_weights(weights)
    before = (weights / "model.safetensors").stat()
    with (weights / "model.safetensors").open("r+b") as file:
        file.seek(at)
        file.write(b"\1")
    # The times are put back: only the bytes may decide.
    os.utime(weights / "model.safetensors", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(RunRefused, match=r"'model\.safetensors' has changed") as refused:
        verify_weights(weights, manifest)
    assert refused.value.reason is Reason.MODEL_MISMATCH


def test_every_difference_is_a_finding(weights: Path) -> None:
    manifest = measure_weights(weights)
    (weights / "a.b").unlink()
    (weights / "config.json").write_bytes(b"{ }")
    (weights / "extra.py").write_bytes(b"import os")
    with pytest.raises(RunRefused) as refused:
        verify_weights(weights, manifest)
    assert [finding.detail for finding in refused.value.failures] == [
        "'a.b' is missing",
        "'config.json' has changed",
        "'extra.py' was not measured",
    ]


def test_a_file_replaced_by_a_link_to_the_same_bytes_is_refused(
    weights: Path, tmp_path: Path
) -> None:
    manifest = measure_weights(weights)
    (weights / "config.json").rename(tmp_path / "elsewhere")
    (weights / "config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunRefused, match=r"'config\.json' is a symbolic link"):
        verify_weights(weights, manifest)


def test_the_digest_covers_names_where_the_root_does_not() -> None:
    first = weights_manifest([("a.bin", "11" * 32), ("b.bin", "22" * 32)])
    renamed = weights_manifest([("a.bin", "11" * 32), ("c.bin", "22" * 32)])
    assert first.root_digest == renamed.root_digest
    assert first.digest != renamed.digest
