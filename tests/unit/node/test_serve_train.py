"""How a training node starts, and what it does not load."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from confide.adapters.durable import SystemDisk
from confide.errors import ConfigurationError, Unavailable
from confide.node.hardware import MachineSettings
from confide.node.seat_party import InvitedNode
from confide.node.serve_train import TrainNodeSettings, serve_train_node

SETTINGS = TrainNodeSettings(
    host="127.0.0.1",
    port=0,
    model="tiny",
    weights=Path("nowhere"),
    machine=MachineSettings(kind="simulated", seed=b"seed"),
    state=Path("nowhere-either"),
)


@pytest.mark.parametrize("name", ["torch", "transformers", "peft", "safetensors"])
def test_it_says_what_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What Python itself takes for a module that cannot be found.
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigurationError, match=rf"needs {name}: pip install 'confide\[train\]'"):
        asyncio.run(serve_train_node(SETTINGS))


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = replace(SETTINGS, weights=tmp_path / "none", state=tmp_path / "state")
    with pytest.raises(Unavailable, match="weights directory"):
        asyncio.run(serve_train_node(settings))


def test_a_base_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    """docs/protocols/weights.md §10."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "model.safetensors.index.json").write_text('{"weight_map":{"w":"../x.safetensors"}}')
    (tmp_path / "x.safetensors").write_bytes(b"")
    settings = replace(SETTINGS, weights=base, state=tmp_path / "state")
    with pytest.raises(ConfigurationError, match="names a file that is not in the folder"):
        asyncio.run(serve_train_node(settings))


@pytest.mark.parametrize("ranks", [0, 1025])
def test_a_job_has_ranks_and_not_too_many(ranks: int) -> None:
    with pytest.raises(ConfigurationError, match="1 to 1024 ranks"):
        asyncio.run(serve_train_node(replace(SETTINGS, ranks=ranks)))


@pytest.mark.parametrize(
    ("invites", "what"),
    [
        ((InvitedNode("http://a", 1024),), "1 to 1024 ranks"),
        ((InvitedNode("http://a"),) * 64, "at most 64 seats"),
        ((InvitedNode("a"),), "address of a node"),
    ],
)
def test_who_is_invited_can_be_seated(invites: tuple[InvitedNode, ...], what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        asyncio.run(serve_train_node(replace(SETTINGS, invites=invites)))


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({}, "goes with --seat or --serve-seats"),
        ({"takes_seats": True}, "needs --seat-address"),
        ({"takes_seats": True, "link": ("name.example", 0)}, "needs --seat-address"),
        ({"takes_seats": True, "link": ("::1", 0)}, "needs --seat-address"),
        ({"takes_seats": True, "link": ("0.0.0.0", 0)}, "needs --seat-address"),  # noqa: S104
    ],
)
def test_ray_is_offered_where_it_can_link_something(changed: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        asyncio.run(serve_train_node(replace(SETTINGS, ray=True, **changed)))


def test_a_node_without_the_package_does_not_offer_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    wanted = replace(SETTINGS, ray=True, takes_seats=True, link=("192.0.2.1", 0))
    with pytest.raises(ConfigurationError, match=r"needs ray: pip install 'confide\[ray\]'"):
        asyncio.run(serve_train_node(wanted))


def test_what_an_earlier_node_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "state" / "training-node" / "checkpoints" / "ftjob-0"
    left.mkdir(parents=True)
    theirs = tmp_path / "state" / "checkpoints"
    theirs.mkdir()
    settings = replace(SETTINGS, weights=tmp_path / "none", state=tmp_path / "state")
    with pytest.raises(Unavailable):
        asyncio.run(serve_train_node(settings))
    assert not left.exists()
    assert theirs.is_dir()


def test_a_folder_that_another_node_uses_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "training-node"
    place.mkdir()
    held = SystemDisk().lock(place / "lock")
    with pytest.raises(ConfigurationError, match="another node uses it"):
        asyncio.run(serve_train_node(replace(SETTINGS, state=tmp_path)))
    SystemDisk().unlock(held)


def test_the_node_process_loads_no_torch() -> None:
    code = (
        "import sys, confide.node.serve_train\n"
        "sys.exit(bool({'torch', 'transformers', 'peft', 'safetensors'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
