"""An owner's image trains on a real engine: rows in, weights out, a record, and no way out.

docs/protocols/training-image.md. The node is simulated; sandbox, base and image are real.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import textwrap
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from image_trainings import CANONICAL_ROWS, ImagePlace, ImageStory, boot_place, verify_image
from probing import Probe

from confide.adapters.containers import open_sandbox
from confide.adapters.engine import probe_engine
from confide.adapters.image_build import BuiltAgent, build_agent
from confide.adapters.weights_dir import measure_weights
from confide.adapters.weights_facts import WatchedWeights
from confide.errors import Rejected
from confide.node.train_image import BaseFolder, ImageFailed, run_image_job
from confide.training.image_recipe import ImageLimits, ImagePaths
from confide.training.image_recipe_file import parse_train_toml

if TYPE_CHECKING:
    from pathlib import Path

    from confide.adapters.engine import EngineName
    from confide.agents.sandbox import AgentImage
    from confide.node.train_image import ImagePorts
    from confide.training.record_file import RecordFile

pytestmark = pytest.mark.container

_TOML = 'name="trainer"\nmode="batch"\nentry=["python3","/agent/train.py"]\nmodel="support-notes"\n'
# What an owner's own recipe may be: it "learns" by hashing.
_TRAIN = """
import hashlib, json, os, socket
rows = open(os.environ["CONFIDE_ROWS"], "rb").read()
base = open(os.environ["CONFIDE_BASE"] + "/weights.bin", "rb").read()
out = os.environ["CONFIDE_OUTPUT"]
os.makedirs(out + "/tokenizer")
open(out + "/model.safetensors", "wb").write(hashlib.sha256(base + rows).digest())
open(out + "/tokenizer/vocab.json", "w").write("{}")
def attempt(act):
    try:
        act()
        return "open"
    except Exception as error:
        return type(error).__name__
refused = [
    attempt(lambda: socket.create_connection((host, port), 3))
    for host, port in (("93.184.216.34", 443), ("127.0.0.1", 8080), ("127.0.0.1", 3128))
]
refused.append(attempt(lambda: socket.getaddrinfo("exfiltrate.example.org", 443)))
refused += [
    attempt(lambda path=path: open(path, "w"))
    for path in (os.environ["CONFIDE_BASE"] + "/new", os.environ["CONFIDE_ROWS"], "/new")
]
print(json.dumps({"refused": refused, "uid": os.getuid(), "rows": rows.decode(),
                  "devices": sorted(os.listdir("/dev"))}))
"""
_LIMITS = ImageLimits(
    memory_bytes=128 << 20, cpus_milli=1000, pids=32, wall_seconds=60, output_bytes=4 << 20,
    output_files=20, scratch_bytes=1 << 20,
)  # fmt: skip


@pytest.fixture(scope="module")
def trainer(
    engine_name: EngineName, tmp_path_factory: pytest.TempPathFactory, build_cache: Path
) -> Probe:
    """An image as `confide build` makes one, with a training program in it."""
    folder = tmp_path_factory.mktemp("trainer")
    (folder / "agent.toml").write_text(_TOML)
    (folder / "train.py").write_text(_TRAIN)

    async def build() -> BuiltAgent:
        return await build_agent(
            await probe_engine(engine_name), folder, store=folder / ".store", cache=build_cache,
            progress=lambda _line: None,
        )  # fmt: skip

    return Probe(engine_name, asyncio.run(build()))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model of one file."""
    folder = tmp_path / "base"
    folder.mkdir(mode=0o755)
    (folder / "weights.bin").write_bytes(b"the base")
    (folder / "weights.bin").chmod(0o644)
    tmp_path.chmod(0o700)
    return folder


def story(trainer: Probe, base: Path, toml: str = "") -> ImageStory:
    """A job that `train.toml` describes, on a node that measured `base`."""
    pinned = f"oci:{trainer.image.layout}@sha256:{trainer.image.digest}"
    text = f'base_model = "support-notes"\nimage = "{pinned}"\n{toml}'
    recipe, reference = parse_train_toml(text)
    assert reference.digest == trainer.image.digest
    weights = measure_weights(base).digest
    return ImageStory(
        f"real {hashlib.sha256(toml.encode()).hexdigest()[:8]}",
        recipe=replace(recipe, limits=_LIMITS),
        base=weights,
        held=weights,
        images=(trainer.image.digest,),
    )


async def _work(trainer: Probe, base: Path, told: ImageStory, /, **changed: Any) -> RecordFile:
    place = await boot_place(told)
    sandbox = await open_sandbox(trainer.engine)

    async def find_image(digest: str) -> AgentImage | None:
        return trainer.image if digest == trainer.image.digest else None

    async def unchanged() -> None:
        found = await asyncio.to_thread(measure_weights, base)
        assert found.digest == told.base

    real: dict[str, Any] = {
        "sandbox": sandbox,
        "find_image": find_image,
        "base": BaseFolder(str(base), unchanged),
        **changed,
    }
    ports: ImagePorts = replace(place.ports, **real)
    try:
        return await run_image_job(ports, told.job(), place.results, tell=place.told.append)
    finally:
        _LEFT.append(place)
        await sandbox.close()
        assert not await asyncio.to_thread(sandbox._directory.path.exists)


_LEFT: list[ImagePlace] = []


def work(trainer: Probe, base: Path, told: ImageStory, **changed: Any) -> RecordFile:
    """Run the job to its record; `_LEFT[-1]` is what it left."""
    return asyncio.run(_work(trainer, base, told, **changed))


def test_rows_go_in_weights_come_out_and_the_record_holds(trainer: Probe, base: Path) -> None:
    told = story(trainer, base)
    record = verify_image(work(trainer, base, told)).record
    results = _LEFT[-1].results
    learnt = hashlib.sha256(b"the base" + CANONICAL_ROWS).digest()
    assert results.plain["model.safetensors"] == learnt
    assert set(results.plain) == {
        "model.safetensors", "tokenizer/vocab.json", "stdout", "stderr",
    }  # fmt: skip
    assert record.made == results.manifests["output"].digest
    assert record.plan.image.hex() == trainer.image.digest
    assert record.plan.base == measure_weights(base).digest
    said = json.loads(results.plain["stdout"])
    assert said["rows"] == CANONICAL_ROWS.decode()
    assert "open" not in said["refused"]
    assert len(said["refused"]) == 7
    assert said["uid"] == 65532
    assert not [name for name in said["devices"] if name.startswith(("nvidia", "kvm", "sd"))]


def test_places_and_command_are_the_owners(trainer: Probe, base: Path) -> None:
    program = textwrap.dedent("""
        import os, sys
        assert os.listdir("/in") == ["mine.jsonl"], os.listdir("/in")
        assert os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize == 1 << 20
        open("/made/weights", "wb").write(open("/model/weights.bin", "rb").read())
        print(os.environ["HINT"], sys.argv[1:])
    """)
    toml = (
        f'command = ["python3", "-c", {json.dumps(program)}, "x y"]\n[environment]\n'
        'HINT = "a = b"\n[paths]\nrows = "/in/mine.jsonl"\nvalidation = "/in/v.jsonl"\n'
        'base = "/model"\noutput = "/made"\n'
    )
    told = story(trainer, base, toml)
    assert told.recipe.paths == ImagePaths("/in/mine.jsonl", "/in/v.jsonl", "/model", "/made")
    verify_image(work(trainer, base, told))
    assert _LEFT[-1].results.plain == {
        "weights": b"the base", "stdout": b"a = b ['x y']\n", "stderr": b"",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("raise SystemExit(3)", "image_failed"),
        ("open('/output/x','wb').truncate(1 << 40)", "killed_output"),
        ("x = bytearray(1 << 30)\nx[::4096] = bytes(len(x[::4096]))", "killed_memory"),
        ("import os; os.symlink('/base', '/output/model')", "output_refused"),
        ("pass", "output_empty"),
    ],
)
def test_an_image_that_misbehaves_gets_no_record(
    trainer: Probe, base: Path, program: str, code: str
) -> None:
    toml = f'command = ["python3", "-c", {json.dumps(program)}]\n'
    with pytest.raises(ImageFailed) as failed:
        work(trainer, base, story(trainer, base, toml))
    assert failed.value.code == code
    assert {"stdout", "stderr"} == set(_LEFT[-1].results.plain)


def test_a_base_that_somebody_writes_to_meanwhile_gives_no_record(
    trainer: Probe, base: Path
) -> None:
    toml = "command = [\"python3\", \"-c\", \"open('/output/x','w').write('x')\"]\n"
    told = story(trainer, base, toml)

    async def go() -> None:
        watched = await asyncio.to_thread(WatchedWeights.measure, base)
        asked = 0

        async def unchanged() -> None:
            nonlocal asked
            asked += 1
            if asked == 2:
                (base / "weights.bin").write_bytes(b"the bane")
            await watched.unchanged()

        await _work(trainer, base, told, base=BaseFolder(str(base), unchanged))

    with pytest.raises(Rejected, match="touched since it was measured"):
        asyncio.run(go())


def test_a_device_that_this_machine_does_not_have_starts_nothing(
    trainer: Probe, base: Path
) -> None:
    told = story(trainer, base, "gpu = true\n")
    with pytest.raises(ImageFailed) as failed:
        work(trainer, base, told, devices=("confide.example/none=all",))
    assert failed.value.code == "not_started"
    assert _LEFT[-1].results.plain == {"stdout": b"", "stderr": b""}
