"""Weights beside an engine: measured, described, watched, held: weights.md §6 to §8."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from confide.adapters.upstream_serve import BUNDLED_WEIGHTS
from confide.adapters.verity import Kernel, Verity, read_verity
from confide.adapters.weights_dir import measure_weights
from confide.adapters.weights_facts import (
    WatchedWeights,
    measure_model_folder,
    read_facts,
    require_contained,
)
from confide.errors import ConfigurationError, Reason, RunRefused, Unavailable
from confide.wire.quantisation import Quantisation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_ROOT = "ab" * 32


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    folder = tmp_path / "weights"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header + b"\x00\x00"
    )
    (folder / "config.json").write_bytes(b'{"quantization_config":{"quant_method":"fp8"}}')
    return folder


def test_the_facts_of_a_directory(weights: Path) -> None:
    assert read_facts(weights, measure_weights(weights)) == Quantisation("fp8", 8, ("BF16",))


def test_the_facts_of_the_bundled_model() -> None:
    found = read_facts(BUNDLED_WEIGHTS, measure_weights(BUNDLED_WEIGHTS))
    assert (found.method, found.bits) == ("none", None)
    assert found.dtypes


def test_a_header_beyond_the_first_mebibyte_is_read(weights: Path) -> None:
    many: dict[str, Any] = {
        f"{n:064}": {"dtype": "F16" if n else "I8", "shape": []} for n in range(20_000)
    }
    raw = json.dumps(many).encode()
    assert len(raw) > 1 << 20
    (weights / "big.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw)
    assert read_facts(weights, measure_weights(weights)).dtypes == ("BF16", "F16", "I8")


def test_a_file_that_is_not_what_its_name_says_refuses_the_start(weights: Path) -> None:
    (weights / "other.gguf").write_bytes(b"not a model")
    with pytest.raises(ConfigurationError, match="GGUF"):
        WatchedWeights.measure(weights)


# weights.md §10; every way to lead elsewhere: tests/unit/inference/test_self_contained.py


def _index(weights: Path, place: str) -> None:
    text = json.dumps({"weight_map": {"w": place}})
    (weights / "model.safetensors.index.json").write_text(text)


def test_a_sharded_model_is_measured(weights: Path) -> None:
    _index(weights, "deep/model.safetensors")
    manifest, facts = measure_model_folder(weights)
    assert manifest == measure_weights(weights)
    assert facts == read_facts(weights, manifest)
    assert WatchedWeights.measure(weights).manifest == manifest


@pytest.mark.parametrize("measure", [measure_model_folder, WatchedWeights.measure])
def test_a_model_that_leads_out_of_its_directory_is_not_measured(
    weights: Path, measure: Callable[[Path], object]
) -> None:
    (weights.parent / "other.safetensors").write_bytes(b"weights that nobody measured")
    _index(weights, "../other.safetensors")
    with pytest.raises(ConfigurationError, match=r"index\.json.*add it.*weights\.md §10"):
        measure(weights)


def test_what_is_judged_is_what_was_measured(weights: Path) -> None:
    """An index that led elsewhere while it was measured, and is honest when it is read again."""
    _index(weights, "../other.safetensors")
    manifest = measure_weights(weights)
    _index(weights, "deep/model.safetensors")
    with pytest.raises(Unavailable, match="changed while it was measured"):
        require_contained(weights, manifest)


def test_an_index_that_is_gone_or_endless_is_refused(weights: Path) -> None:
    _index(weights, "deep/model.safetensors")
    manifest = measure_weights(weights)
    index = weights / "model.safetensors.index.json"
    with index.open("r+b") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(ConfigurationError, match="longer than"):
        require_contained(weights, manifest)
    index.unlink()
    with pytest.raises(Unavailable, match="reading failed"):
        require_contained(weights, manifest)


def _touch(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def _swap_back(path: Path) -> None:
    """Change a byte and the time with it: mtime is back, ctime cannot be."""
    before = path.stat()
    raw = path.read_bytes()
    path.write_bytes(b"x" + raw[1:])
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _replace(path: Path) -> None:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


def _add(path: Path) -> None:
    (path.parent / "adapter_config.json").write_bytes(b"{}")


def _remove(path: Path) -> None:
    path.unlink()


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.symlink_to(path.with_suffix(".old"))


@pytest.mark.parametrize("change", [_touch, _swap_back, _replace, _add, _remove, _link])
def test_a_directory_that_was_touched_is_not_what_was_measured(
    weights: Path, change: object
) -> None:
    watched = WatchedWeights.measure(weights)
    asyncio.run(watched.unchanged())
    assert callable(change)
    change(weights / "config.json")
    with pytest.raises(RunRefused) as caught:
        asyncio.run(watched.unchanged())
    assert caught.value.reason is Reason.MODEL_MISMATCH


@dataclass
class StandIn:
    """What a kernel with fs-verity and dm-verity answers, as its headers define it."""

    files: dict[str, bytes] = field(default_factory=dict)
    table: str = ""
    kind: bytes = b"verity"
    targets: int = 1
    refusal: int = errno.ENODATA
    asked: list[int] = field(default_factory=list)

    def ioctl(self, descriptor: int, request: int, buffer: bytearray) -> None:
        self.asked.append(request)
        if request == 0xC0046686:  # FS_IOC_MEASURE_VERITY
            assert struct.unpack_from("<HH", buffer) == (0, 64)
            name = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115, PTH119
            if name not in self.files:
                raise OSError(self.refusal, "no verity")
            struct.pack_into("<HH", buffer, 0, 1, 32)
            buffer[4:36] = self.files[name]
            return
        assert request == 0xC138FD0C  # DM_TABLE_STATUS
        version, size, start, flags = (
            struct.unpack_from("<I", buffer, at)[0] for at in (0, 12, 16, 28)
        )
        assert (version, size, start, flags) == (4, len(buffer), 312, 16)
        struct.pack_into("<I", buffer, 20, self.targets)
        struct.pack_into("<QQiI16s", buffer, 312, 0, 8, 0, 0, self.kind)
        raw = self.table.encode() + b"\0"
        buffer[352 : 352 + len(raw)] = raw


def _kernel(tmp_path: Path, stand_in: StandIn, *, uuid: str = "", device: Path) -> Kernel:
    number = device.stat().st_dev
    if uuid:
        entry = tmp_path / "sys" / f"dev/block/{os.major(number)}:{os.minor(number)}" / "dm"
        entry.mkdir(parents=True)
        (entry / "uuid").write_text(uuid)
    control = tmp_path / "control"
    control.touch()
    return Kernel(ioctl=stand_in.ioctl, sysfs=tmp_path / "sys", control=control)


_NAMES = ("config.json", "model.safetensors")
_TABLE = f"1 253:0 253:1 4096 4096 100 1 sha256 {_ROOT} {'cd' * 32} 1 ignore_zero_blocks"


def test_fs_verity_counts_where_every_file_has_it(weights: Path, tmp_path: Path) -> None:
    manifest = measure_weights(weights)
    stand_in = StandIn({name: name[:1].encode() * 32 for name in _NAMES})
    kernel = _kernel(tmp_path, stand_in, device=weights)
    held = read_verity(weights, manifest, kernel)
    assert held == Verity("fs-verity", ((b"c" * 32).hex(), (b"m" * 32).hex()))
    del stand_in.files["model.safetensors"]
    assert read_verity(weights, manifest, kernel) is None


def test_dm_verity_gives_the_root_of_its_device(weights: Path, tmp_path: Path) -> None:
    kernel = _kernel(
        tmp_path, StandIn(table=_TABLE), uuid="CRYPT-VERITY-0123-weights\n", device=weights
    )
    assert read_verity(weights, measure_weights(weights), kernel) == Verity("dm-verity", (_ROOT,))


@pytest.mark.parametrize("uuid", ["", "LVM-0123", "CRYPT-LUKS2-0123"])
def test_another_device_holds_nothing(weights: Path, tmp_path: Path, uuid: str) -> None:
    kernel = _kernel(tmp_path, StandIn(), uuid=uuid, device=weights)
    assert read_verity(weights, measure_weights(weights), kernel) is None


@pytest.mark.parametrize(
    "stand_in",
    [
        StandIn(table=_TABLE, targets=2),
        StandIn(table=_TABLE, kind=b"linear"),
        StandIn(table=_TABLE.replace("sha256", "sha1")),
        StandIn(table=_TABLE.replace(_ROOT, _ROOT[:-2])),
        StandIn(table=""),
        StandIn(table=_TABLE, refusal=errno.EIO),
    ],
)
def test_an_answer_of_another_form_is_neither_yes_nor_no(
    weights: Path, tmp_path: Path, stand_in: StandIn
) -> None:
    kernel = _kernel(tmp_path, stand_in, uuid="CRYPT-VERITY-0123-weights", device=weights)
    with pytest.raises(Unavailable):
        read_verity(weights, measure_weights(weights), kernel)


def test_the_real_kernel_is_asked_without_harm(weights: Path) -> None:
    """Whatever this machine offers: an answer, or none; never an error of ours."""
    held = read_verity(weights, measure_weights(weights), Kernel())
    assert held is None or held.kind in ("fs-verity", "dm-verity")
