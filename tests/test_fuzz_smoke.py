"""Every fuzz target on a fixed number of inputs: the invariant holds, and the guards bite."""

from __future__ import annotations

import mmap
from contextlib import suppress

import pytest
from fuzz.driver import Target, fuzz, make_input, try_input
from fuzz.targets import TARGETS

from confide.crypto.errors import BadSignature
from confide.errors import ReceiptRejected

# Whole verifiers take some ten milliseconds each.
_INPUTS = {"appraise": 4, "verify": 2}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_result_or_one_of_our_errors(target: Target) -> None:
    mutated = _INPUTS.get(target.name.partition("-")[0], 25)
    crash = fuzz(target, seed=1, numbers=range(len(target.seeds()) + mutated))
    assert crash is None, str(crash)


# What these read is signed by somebody else than the one they ask for.
_SIGNED_BY_OTHERS = {"certificate", "crl", "ocsp", "aci-receipt"}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_genuine_inputs_reach_the_end(target: Target) -> None:
    refused: tuple[type[Exception], ...] = ()
    if target.name in _SIGNED_BY_OTHERS:
        refused = (BadSignature, ReceiptRejected)
    with suppress(*refused):
        target.run(target.seeds()[0])


def test_names_are_unique_and_inputs_repeatable() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    for target in TARGETS[:5]:
        assert make_input(target, 7, 99) == make_input(target, 7, 99) != make_input(target, 8, 99)


def _spin(_raw: bytes) -> None:
    while True:
        pass


def _swallow(_raw: bytes) -> None:
    held = mmap.mmap(-1, 300 * 1024 * 1024)
    for at in range(0, len(held), mmap.PAGESIZE):
        held[at] = 1
    held.close()


def _wrong(_raw: bytes) -> None:
    raise KeyError("x")


@pytest.mark.parametrize(
    ("run", "what"),
    [(_spin, "processor time"), (_swallow, "resident memory"), (_wrong, "KeyError")],
)
def test_the_guards_bite(run: object, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz.driver.CPU_SECONDS", 0.05 if run is _spin else 5.0)
    target = Target("x", run, lambda: (b"seed",))  # type: ignore[arg-type]
    assert what in (try_input(target, b"") or "")
    crash = fuzz(target, seed=3, numbers=range(9))
    assert crash is not None
    assert "c2VlZA==" in str(crash)
