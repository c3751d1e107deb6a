"""The Expectation: what people write, what travels, what a change means. expectation.md."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from confide.errors import FormatError, Reason
from confide.expectation import (
    NO_BROKER,
    Expectation,
    Limits,
    diff_expectations,
    parse_expectation,
    parse_expectation_toml,
)
from confide.wire.json import jcs

NODE = "\n".join(
    f'{name} = ["{digit * size}"]'
    for name, digit, size in (
        ("mrtd", "1", 96),
        ("rtmr0", "2", 96),
        ("rtmr1", "3", 96),
        ("rtmr2", "4", 96),
        ("mrconfigid", "5", 96),
        ("software", "6", 64),
    )
)
TOML = f"""
name = "notes"

[hardware]
roots = "vendor"
tcb_status = ["UpToDate"]
min_tcb_evaluation = 18
max_collateral_days = 30
mrseam = ["{"7" * 96}"]
platform_flags = []

[gpu]
count = 1
mode = "SPT"
chips = ["GH100"]
drivers = ["570.1"]
vbios = ["96.00"]

[agent_node]
{NODE}

[model_node]
{NODE}

[agent]
image = "{"8" * 64}"
mode = "batch"

[model]
name = "support-notes"
weights = "{"9" * 64}"
"""
# Changes only together with the type of the document: it names every Expectation ever written.
GOLDEN = "e291f03ba23fd541472569b46536f8a2a4214d289c5b66d9b6c1c4aa4c1ad512"


def written() -> Expectation:
    return parse_expectation_toml(TOML)


def document() -> dict[str, Any]:
    return written().document()


def refuse(value: dict[str, Any]) -> FormatError:
    with pytest.raises(FormatError) as error:
        parse_expectation(jcs(value))
    assert error.value.reason is Reason.EXPECTATION_MISMATCH
    return error.value


def test_its_digest_is_stable() -> None:
    assert written().digest.hex() == GOLDEN
    # All of it is ASCII, so that sorting by code points is sorting by UTF-16 (RFC 8785 §3.2.3).
    plain = json.dumps(document(), sort_keys=True, separators=(",", ":")).encode()
    assert written().canonical() == plain


def test_omitted_fields_take_the_refusing_default() -> None:
    expectation = written()
    assert expectation.egress == ()
    assert expectation.hardware.accept_not_proven == ()
    assert expectation.hardware.platforms == ()
    assert expectation.recipients == ("caller",)
    assert expectation.broker == NO_BROKER
    assert expectation.limits == Limits()


def test_the_canonical_form_has_every_field_and_reads_back() -> None:
    expectation = written()
    assert parse_expectation(expectation.canonical()) == expectation
    assert set(document()) == {"type", *(field.name for field in fields(Expectation))}
    assert set(document()["limits"]) == {field.name for field in fields(Limits)}


def test_the_order_of_writing_does_not_matter() -> None:
    head, tail = TOML.split("[gpu]")
    gpu, rest = tail.split("[agent_node]")
    assert parse_expectation_toml(head + "[agent_node]" + rest + "[gpu]" + gpu) == written()


@pytest.mark.parametrize("name", [field.name for field in fields(Expectation)])
def test_what_travels_is_complete(name: str) -> None:
    value = document()
    del value[name]
    refuse(value)


@pytest.mark.parametrize(
    ("section", "name"),
    [
        (section, name)
        for section in (
            "hardware",
            "gpu",
            "agent_node",
            "model_node",
            "agent",
            "model",
            "broker",
            "limits",
        )
        for name in written().document()[section]  # type: ignore[union-attr]
    ],
)
def test_every_section_that_travels_is_complete_and_closed(section: str, name: str) -> None:
    value = document()
    kept = value[section].pop(name)
    assert name in str(refuse(value))
    value[section] = {**value[section], name: kept, "extra": 1}
    assert "unknown" in str(refuse(value))


@pytest.mark.parametrize("edit", [b" ", b"\n"])
def test_only_canonical_bytes_travel(edit: bytes) -> None:
    with pytest.raises(FormatError):
        parse_expectation(written().canonical() + edit)
    with pytest.raises(FormatError):
        parse_expectation(written().canonical().replace(b'":', b'":' + edit, 1))


def test_members_in_another_order_do_not_travel() -> None:
    raw = written().canonical()
    inner = raw[1:-1]
    first = b'"agent":{"image":"' + b"8" * 64 + b'","mode":"batch"}'
    assert inner.startswith(first)
    with pytest.raises(FormatError, match="canonical"):
        parse_expectation(b"{" + inner.removeprefix(first + b",") + b"," + first + b"}")


LONG = "f" * 95
BAD = [
    ("type", "confide/expectation/v2"),
    ("name", "n" * 129),
    ("name", 1),
    ("hardware.roots", "simulated"),
    ("hardware.roots", "simulated:" + "0" * 63),
    ("hardware.roots", "simulated:" + "G" * 64),
    ("hardware.roots", "vendor:" + "0" * 64),
    ("hardware.roots", ""),
    ("hardware.tcb_status", "UpToDate"),
    ("hardware.tcb_status", [1]),
    ("hardware.min_tcb_evaluation", -1),
    ("hardware.min_tcb_evaluation", True),
    ("hardware.max_collateral_days", 0),
    ("hardware.max_collateral_days", 367),
    ("hardware.mrseam", [LONG]),
    ("hardware.platforms", ["0" * 31]),
    ("hardware.platform_flags", None),
    ("hardware.accept_not_proven", [None]),
    ("gpu.count", 0),
    ("gpu.count", 9),
    ("gpu.mode", "PPCIE"),
    ("gpu.chips", "GH100"),
    ("gpu.drivers", [570]),
    ("gpu.vbios", {}),
    ("agent_node.mrtd", [LONG]),
    ("agent_node.rtmr0", ["F" * 96]),
    ("agent_node.rtmr1", "f" * 96),
    ("agent_node.rtmr2", [""]),
    ("agent_node.mrconfigid", [LONG + "g"]),
    ("model_node.software", ["0" * 62]),
    ("agent.image", "sha256:" + "8" * 64),
    ("agent.image", "latest"),
    ("agent.mode", "daemon"),
    ("model.name", "n" * 257),
    ("model.weights", "0" * 62),
    ("model.weights", None),
    ("egress", ["example.org"]),
    ("egress", ["example.org:"]),
    ("egress", [":443"]),
    ("egress", ["example.org:0"]),
    ("egress", ["example.org:0443"]),
    ("egress", ["example.org:65536"]),
    ("egress", ["example.org:" + "9" * 5000]),
    ("egress", ["example.org:४४३"]),
    ("egress", ["Example.org:443"]),
    ("egress", ["*.example.org:443"]),
    ("egress", ["https://example.org:443"]),
    ("egress", ["a b:443"]),
    ("recipients", []),
    ("recipients", ["owner"]),
    ("recipients", ["x25519:" + "0" * 63]),
    ("recipients", ["0" * 64]),
    ("recipients", ["caller"] * 17),
    ("limits.memory_bytes", 0),
    ("limits.wall_seconds", 1.5),
    ("limits.pids", "128"),
]


@pytest.mark.parametrize(("path", "value"), BAD)
def test_a_value_that_cannot_be_is_refused_with_its_field(path: str, value: object) -> None:
    section, _, name = path.rpartition(".")
    changed = document()
    (changed[section] if section else changed)[name] = value
    assert (name.removesuffix("s")) in str(refuse(changed))


@pytest.mark.parametrize(
    "value",
    [
        "example.org:443",
        "192.0.2.1:1",
        "[2001:db8::1]:65535",
        "x-1:8443",
    ],
)
def test_destinations_that_are_accepted(value: str) -> None:
    assert parse_expectation(jcs({**document(), "egress": [value]})).egress == (value,)


def test_a_recipient_may_be_a_key() -> None:
    key = "x25519:" + "a" * 64
    changed = {**document(), "recipients": ["caller", key]}
    assert parse_expectation(jcs(changed)).recipients == ("caller", key)


@pytest.mark.parametrize(
    "text",
    ["", "name = ", "name = 1", TOML + "\n[extra]\n", TOML.replace("[gpu]", "[gpus]"), "\0"],
)
def test_toml_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_expectation_toml(text)


def test_limits_may_be_written_in_part() -> None:
    some = parse_expectation_toml(TOML + "\n[limits]\npids = 7\n")
    assert some.limits == replace(Limits(), pids=7)


# Differences


def test_equal_expectations_do_not_differ() -> None:
    assert diff_expectations(written(), parse_expectation(written().canonical())) == ()


def test_a_difference_says_what_it_means() -> None:
    before = written()
    after = replace(before, egress=("example.org:443",), name="other")
    found = diff_expectations(before, after)
    assert [(d.path, d.before, d.after, d.meaning) for d in found] == [
        ("name", "notes", "other", "only the label"),
        ("egress", "(none)", "example.org:443", "the agent may send data to other places"),
    ]


def test_every_field_has_a_meaning() -> None:
    def other(value: Any) -> Any:
        if isinstance(value, tuple):
            return (*value, "another")
        if isinstance(value, str):
            return value + "x"
        if isinstance(value, int):
            return value + 1
        return replace(value, **{f.name: other(getattr(value, f.name)) for f in fields(value)})

    before = written()
    after = other(before)
    found = diff_expectations(before, after)
    leaves = sum(
        len(item) if isinstance(item, dict) else 1
        for name, item in after.document().items()
        if name != "type"
    )
    assert len(found) == leaves
    assert all(difference.meaning for difference in found)
    assert len({difference.path for difference in found}) == leaves
