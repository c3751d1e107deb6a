"""The wheel is what users get: whole, typed, without tests, and its verifier needs no extras."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import architecture
from confide.version import __version__

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "confide"
CORE = ("cryptography", "rfc8785", "lxml", "cffi", "pycparser")
PURE = sorted(
    ".".join(["confide", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(
        ".__init__"
    )
    for path in PACKAGE.rglob("*.py")
    if architecture.Module.read(path, PACKAGE).room in architecture.PURE | {"__init__"}
)
# Run in the fresh interpreter: no network, nothing but the core, every pure module.
PROGRAM = """
import importlib, socket, sys

class Refused(Exception): ...

def refuse(*arguments, **words):
    raise Refused

socket.socket.connect = refuse
socket.getaddrinfo = socket.create_connection = refuse
for name in sys.argv[1:]:
    importlib.import_module(name)
import confide
print(confide.__file__)
print(" ".join(sorted({name.split(".")[0] for name in sys.modules} - sys.stdlib_module_names)))
"""


LOCKS = sorted((ROOT / "requirements").glob("*.txt"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_holds_names_versions_and_hashes_only(lock: Path) -> None:
    text = lock.read_text()
    entries = [line for line in text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
    assert entries
    for entry in entries:
        requirement, *hashes = entry.split("--hash=sha256:")
        name, _, version = requirement.split(";")[0].partition("==")
        assert re.fullmatch(r"[a-z0-9-]+", name), entry
        assert re.fullmatch(r"[0-9a-z.+]+", version.strip()), entry
        assert hashes, f"{name} has no hash"
        assert all(re.fullmatch(r"[0-9a-f]{64}", value.strip()) for value in hashes)


def test_cuda_comes_in_through_one_file_only() -> None:
    brings_cuda = {
        lock.name
        for lock in LOCKS
        if re.search(r"^(nvidia-(?!ml-py==)|cuda-|triton==)", lock.read_text(), re.MULTILINE)
    }
    assert brings_cuda == {"torch.txt"}
    torch = {lock.name: re.findall(r"\ntorch==(\S+)", lock.read_text()) for lock in LOCKS}
    [plain] = torch["torch.txt"]
    assert torch["torch-cpu.txt"] == [f"{plain}+cpu"]
    assert not [name for name in torch.keys() - {"torch.txt", "torch-cpu.txt"} if torch[name]]


def test_every_dependency_that_users_install_is_accounted_for() -> None:
    account = (ROOT / "docs" / "dependencies.md").read_text()
    names = [
        name
        for lock in (
            "runtime.txt",
            "gpu.txt",
            "services.txt",
            "model.txt",
            "train.txt",
            "ray.txt",
            "torch-cpu.txt",
        )
        for name in re.findall(r"\n([a-z0-9-]+)==", (ROOT / "requirements" / lock).read_text())
    ]
    names += re.findall(r"\n([a-z][a-z-]*)", (ROOT / "requirements" / "dev.in").read_text())
    missing = [name for name in names if f"`{name}`" not in account]
    assert not missing, f"docs/dependencies.md says nothing about {missing}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built once, offline, with the backend that is installed here."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    """What lies in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_it_holds_every_file_of_the_package_and_no_other(names: set[str]) -> None:
    source = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"confide/py.typed", "confide/__init__.py"} <= source
    assert {name for name in names if ".dist-info/" not in name} == source


def test_it_holds_no_tests_and_no_secrets(names: set[str]) -> None:
    parts = {part for name in names for part in Path(name).parts}
    assert not {part for part in parts if part == "tests" or part.startswith(("test_", "conftest"))}
    assert not {part for part in parts if part.endswith((".key", ".env", ".pyc"))}


def test_its_metadata_names_three_packages_and_the_licence(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(wheel) as archive:
        prefix = f"confide-{project['version']}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{prefix}/METADATA").decode())
        scripts = archive.read(f"{prefix}/entry_points.txt").decode()
        assert f"{prefix}/licenses/LICENSE" in archive.namelist()
    always = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {line.split("<")[0].split(">")[0] for line in always} == set(CORE[:3])
    assert metadata["Version"] == __version__, "pyproject.toml and version.py disagree"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "confide = confide.cli.main:main" in scripts


def test_the_verifier_imports_without_extras_and_without_network(
    wheel: Path, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for distribution in CORE:
        _link_files(distribution, site)
    # -I -S: neither this environment's packages nor the folder we stand in can be imported.
    program = f"import sys; sys.path.insert(0, {str(site)!r})\n{PROGRAM}"
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-W", "error", "-c", program, *PURE],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.defpath},
    )
    assert result.returncode == 0, result.stderr
    where, loaded = result.stdout.splitlines()
    assert where.startswith(str(site))
    assert {"cryptography", "lxml", "rfc8785"} <= set(loaded.split())


def _link_files(distribution: str, site: Path) -> None:
    found = importlib.metadata.distribution(distribution)
    for name in {Path(file).parts[0] for file in found.files or ()} - {".."}:
        target = site / name
        if not target.exists():
            target.symlink_to(Path(str(found.locate_file(name))))
