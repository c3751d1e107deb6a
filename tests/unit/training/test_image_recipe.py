"""`train.toml` is read strictly, and has one digest: docs/protocols/training-image.md §1."""

from __future__ import annotations

import pytest

from confide.errors import FormatError, Reason
from confide.training.image_recipe import ImagePaths, ImagePlan, ImageRecipe
from confide.training.image_recipe_file import (
    is_train_toml,
    parse_image_recipe,
    parse_train_toml,
    read_image_recipe,
)
from confide.wire.json import jcs

DIGEST = "ab" * 32
SMALL = f'base_model = "tiny"\nimage = "oci:images/trl@sha256:{DIGEST}"\n'
# §1.4: what the two lines above mean, whoever reads them.
CANONICAL = (
    b'{"base_model":"tiny","command":[],"environment":{},"gpu":false,"image":"'
    + DIGEST.encode()
    + b'","limits":{"cpus_milli":2000,"memory_bytes":4294967296,"output_bytes":1073741824,'
    b'"output_files":1000,"pids":256,"scratch_bytes":268435456,"wall_seconds":3600},'
    b'"network":"none","paths":{"base":"/base","output":"/output","rows":"/data/rows.jsonl",'
    b'"validation":"/data/validation.jsonl"},"type":"confide/training-image-recipe/v1"}'
)


def recipe(more: str = "") -> ImageRecipe:
    return parse_train_toml(SMALL + more)[0]


def test_the_smallest_file_means_what_the_clause_says() -> None:
    assert recipe().canonical() == CANONICAL
    assert recipe().digest.hex() == (
        "855f4a2f01ff54624b07d884d36ae006414bbc328ee957ccbcb0aee7429a99a2"
    )


def test_a_recipe_travels_as_it_is() -> None:
    full = recipe(
        'command = ["python3", "/agent/train.py", "--epochs", "3"]\ngpu = true\nnetwork = "none"\n'
        '[environment]\nSEED = "7"\n[paths]\nrows = "/in/here/r.jsonl"\n'
        'validation = "/in/here/v.jsonl"\noutput = "/made"\n[limits]\nmemory_bytes = 33554432\n'
    )
    for made in (recipe(), full):
        assert parse_image_recipe(made.canonical()) == made
    assert full.paths == ImagePaths("/in/here/r.jsonl", "/in/here/v.jsonl", "/base", "/made")
    assert full.paths.data == "/in/here"
    assert full.limits.memory_bytes == 32 << 20
    assert full.limits.pids == recipe().limits.pids


def test_where_the_image_is_found_decides_nothing() -> None:
    elsewhere = f'base_model = "tiny"\nimage = "registry.example/trl@sha256:{DIGEST}"\n'
    found, reference = parse_train_toml(elsewhere)
    assert found.digest == recipe().digest
    assert (reference.name, reference.layout) == ("registry.example/trl", False)


def test_what_is_the_owners_is_in_no_repr() -> None:
    told = repr(recipe('command = ["train", "--hint", "mine"]\n[environment]\nTOKEN = "mine"\n'))
    assert "mine" not in told


def test_a_recipe_without_an_image_is_no_train_toml() -> None:
    assert is_train_toml(SMALL)
    assert not is_train_toml('base_model = "tiny"\nlearning_rate = 1e-3\n')


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('comand = ["x"]', "unknown key 'comand'; did you mean command?"),
        ("env = {}", "write environment"),
        ('egress = ["example.org:443"]', "a training image has no network"),
        ("learning_rate = 1e-3", "as the image takes it"),
        ("xyzzy = 1", "unknown key 'xyzzy'"),
        ('network = "host"', "network is not one of none"),
        ("gpu = 1", "gpu"),
        ('command = [""]', "begins with nothing"),
        ('command = ["a\\u0000"]', "NUL"),
        ('[paths]\nrow = "/x/y"', "did you mean paths.rows?"),
        ("[limits]\nmemory = 1", "did you mean limits.memory_bytes?"),
        ("[limits]\nmemory_bytes = 1048576", "at least 16 MiB"),
        ("[limits]\npids = 1", "2 processes"),
        ("[limits]\nwall_seconds = 39601", "at most 39600"),
        ("[limits]\noutput_bytes = 0", "output_bytes is not an integer from 1"),
        ("limits = 3", "an object was expected"),
        ("[environment]\nSEED = 7", "write it in quotes"),
        ('[environment]\nCONFIDE_ROWS = "x"', "one of the node's"),
        ('[environment]\n"A B" = "x"', "no name of a variable"),
        ('[environment]\nA = "x\\ny"', "line break"),
        (f'[environment]\nA = "{"x" * 32769}"', "too long"),
        ('[paths]\nbase = "base"', "not an absolute path"),
        ('[paths]\nbase = "/base/../etc"', "not an absolute path"),
        ('[paths]\nbase = "/base,ro=false"', "not an absolute path"),
        ('[paths]\nbase = "/proc/base"', "the system or the sandbox"),
        ('[paths]\noutput = "/tmp"', "the system or the sandbox"),
        ('[paths]\noutput = "/base/output"', "/base is another of the folders, or holds one"),
        ('[paths]\noutput = "/data"', "another of the folders"),
        ('[paths]\noutput = "/base"', "another of the folders"),
        ('[paths]\nrows = "/rows.jsonl"\nvalidation = "/v.jsonl"', "not at the root"),
        ('[paths]\nrows = "/elsewhere/rows.jsonl"', "two files of one folder"),
        ('[paths]\nrows = "/data/validation.jsonl"', "two files of one folder"),
    ],
)
def test_what_is_not_understood_is_refused(more: str, said: str) -> None:
    with pytest.raises(FormatError) as refused:
        recipe(f"{more}\n")
    assert said in refused.value.what
    assert refused.value.reason is Reason.RECIPE_FORMAT


@pytest.mark.parametrize("key", ["base_model", "image"])
def test_what_has_no_default_has_to_be_written(key: str) -> None:
    text = "".join(line for line in SMALL.splitlines(keepends=True) if not line.startswith(key))
    with pytest.raises(FormatError, match=f"{key} is missing"):
        parse_train_toml(text)


def test_a_tag_is_no_image() -> None:
    with pytest.raises(FormatError) as refused:
        parse_train_toml('base_model = "tiny"\nimage = "trl:latest"\n')
    assert refused.value.reason is Reason.IMAGE_NOT_PINNED


def test_only_the_canonical_form_travels() -> None:
    with pytest.raises(FormatError, match="not in canonical form"):
        parse_image_recipe(CANONICAL + b" ")
    with pytest.raises(FormatError, match="image is not the SHA-256"):
        read_image_recipe({**recipe().value(), "image": DIGEST.upper()})
    for name in recipe().value():
        value = recipe().value()
        del value[name]
        with pytest.raises(FormatError, match=f"{name} is missing"):
            parse_image_recipe(jcs(value))


def test_each_part_of_a_plan_is_in_its_digest() -> None:
    parts = [bytes([number]) * 32 for number in range(5)]
    plans = {ImagePlan(*parts).digest}
    for number in range(5):
        other = list(parts)
        other[number] = b"x" * 32
        plans.add(ImagePlan(*other).digest)
    plans.add(ImagePlan(parts[0], parts[1], parts[2], None, parts[4]).digest)
    assert len(plans) == 7
