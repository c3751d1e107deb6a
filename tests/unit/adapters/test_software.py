"""The digest of the node package: one for a wheel, an installation and a source tree."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import confide
from confide.adapters.software import measure_package, measure_wheel

REPOSITORY = Path(__file__).resolve().parents[3]


def tree(root: Path, **files: bytes) -> Path:
    for name, raw in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return root


def wheel(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in files.items():
            archive.writestr("confide/" + name.replace("__", "/"), raw)
        archive.writestr("confide-0.1.dist-info/RECORD", b"not of the package")
        archive.writestr("confidence/file.py", b"of another package")
    return path


FILES = {"a.py": b"a = 1\n", "sub__b.py": b"", "py.typed": b""}


def test_a_wheel_and_its_installation_measure_the_same(tmp_path: Path) -> None:
    installed = tree(tmp_path / "confide", **FILES)
    assert measure_package(installed) == measure_wheel(wheel(tmp_path / "w.whl", **FILES))


def test_the_order_in_a_wheel_does_not_matter(tmp_path: Path) -> None:
    one = wheel(tmp_path / "1.whl", **FILES)
    two = wheel(tmp_path / "2.whl", **dict(reversed(FILES.items())))
    assert measure_wheel(one) == measure_wheel(two)


@pytest.mark.parametrize(
    "changed",
    [
        {**FILES, "a.py": b"a = 2\n"},
        {**FILES, "new.py": b""},
        {"a.py": b"a = 1\n", "py.typed": b""},
        {"a.py": b"", "sub__b.py": b"a = 1\n", "py.typed": b""},
        {**FILES, "sub__native.so": b"\x7fELF"},
    ],
)
def test_every_file_and_name_counts(tmp_path: Path, changed: dict[str, bytes]) -> None:
    before = measure_package(tree(tmp_path / "before", **FILES))
    assert measure_package(tree(tmp_path / "after", **changed)) != before


def test_byte_code_caches_do_not_count(tmp_path: Path) -> None:
    plain = measure_package(tree(tmp_path / "plain", **FILES))
    cached = tree(tmp_path / "cached", **FILES)
    (cached / "__pycache__").mkdir()
    (cached / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"byte code")
    assert measure_package(cached) == plain


@pytest.mark.slow
def test_the_wheel_that_is_built_measures_as_what_is_installed_from_it(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", str(tmp_path), REPOSITORY],
        check=True,
        capture_output=True,
    )
    (built,) = tmp_path.glob("confide-*.whl")
    target = tmp_path / "installed"
    with zipfile.ZipFile(built) as archive:
        archive.extractall(target)
    assert measure_wheel(built) == measure_package(target / "confide")
    assert measure_wheel(built) == measure_package(Path(confide.__file__).parent)
