"""The public face: every name is there, and importing the package loads nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import confide


@pytest.mark.parametrize("name", confide.__all__)
def test_every_name_resolves(name: str) -> None:
    assert getattr(confide, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        _ = confide.no_such_name


def test_importing_the_package_loads_no_cryptography() -> None:
    program = "import confide, sys; print('cryptography' in sys.modules, 'lxml' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.split() == [b"False", b"False"]
