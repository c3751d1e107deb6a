"""The bundled model does its task on notes it has never seen, served as a node serves it."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import select
import signal
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest

from confide.adapters.upstream_serve import BUNDLED_NAME as NAME
from confide.adapters.upstream_serve import BUNDLED_WEIGHTS as WEIGHTS
from confide.adapters.upstream_serve import EmbeddedEngine, EngineSettings
from confide.adapters.weights_dir import measure_weights
from confide.errors import ConfigurationError, Reason, RunRefused, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

pytest.importorskip("torch")
pytest.importorskip("transformers")
safe_open = pytest.importorskip("safetensors").safe_open

pytestmark = pytest.mark.model

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "models" / "support_notes"
ASK = (
    "Label this support note as one of: billing, bug, feature, account, shipping, praise.\n\nNote: "
)
RATE = "Is this support note urgent or normal? Answer with one word.\n\nNote: "

Json: TypeAlias = dict[str, Any]
Chat: TypeAlias = list[dict[str, str]]


def post(url: str, body: Json) -> Json:
    request = urllib.request.Request(  # noqa: S310 - a loopback address of ours
        url, data=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        answer: Json = json.load(response)
        return answer


def say(base_url: str, messages: Chat) -> str:
    body = {"model": NAME, "messages": messages, "max_tokens": 48}
    answer = post(f"{base_url}/v1/chat/completions", body)
    content: str = answer["choices"][0]["message"]["content"]
    return content


def share(base_url: str, rows: Iterable[tuple[Chat, str]]) -> tuple[float, list[str]]:
    """Return the share of right answers and, to read in a failure, the wrong ones."""
    wrong, total = [], 0
    for messages, expected in rows:
        total += 1
        said = say(base_url, messages)
        if said != expected:
            wrong.append(f"{said!r}, not {expected!r}: {messages[-1]['content']}")
    return 1 - len(wrong) / total, wrong


def written(prompt: str, column: str) -> list[tuple[Chat, str]]:
    with (RECIPE / "heldout.csv").open(encoding="utf-8", newline="") as file:
        return [
            ([{"role": "user", "content": prompt + row["note"]}], row[column])
            for row in csv.DictReader(file)
        ]


def duplicate(target: Path) -> Path:
    target.mkdir()
    for file in WEIGHTS.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def glob(directory: Path, pattern: str) -> list[Path]:
    return list(directory.glob(pattern))


def blank(directory: Path) -> None:
    for file in directory.iterdir():
        file.write_bytes(b"\0" * file.stat().st_size)


def spoil(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")


def settings(state: Path, weights: Path = WEIGHTS, name: str = NAME) -> EngineSettings:
    return EngineSettings(
        weights=weights, manifest=measure_weights(weights), public_name=name, state_dir=state
    )


def with_engine(state: Path, use: Callable[[EmbeddedEngine], Awaitable[None]]) -> None:
    async def run() -> None:
        async with await EmbeddedEngine.start(settings(state)) as engine:
            await use(engine)

    asyncio.run(run())


# The model


def test_it_labels_notes_it_has_never_seen(tmp_path: Path) -> None:
    generated = subprocess.run(
        [sys.executable, str(RECIPE / "notes.py"), "--split", "heldout", "--rows", "600"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = [(line["messages"], line["answer"]) for line in map(json.loads, generated.splitlines())]

    async def use(engine: EmbeddedEngine) -> None:
        found = {}
        for what, asked in (
            ("generated", rows),
            ("hand-written labels", written(ASK, "label")),
            ("hand-written urgency", written(RATE, "urgency")),
        ):
            found[what], wrong = await asyncio.to_thread(share, engine.base_url, asked)
            sys.stdout.write("".join(f"{what}: {line}\n" for line in wrong))
        sys.stdout.write(f"{found}\n")
        # Over four seeds of the generator 94.9 % were right, on this one 95.3 %.
        assert found["generated"] >= 0.94
        assert found["hand-written labels"] >= 0.85
        assert found["hand-written urgency"] >= 0.85

    with_engine(tmp_path, use)


def test_training_and_held_out_share_no_template_and_no_filler() -> None:
    def strings(value: object) -> set[str]:
        if isinstance(value, str):
            return {value}
        if isinstance(value, dict):
            value = list(value.values())
        assert isinstance(value, list)
        return {text for item in value for text in strings(item)}

    train = tomllib.loads((RECIPE / "train.toml").read_text(encoding="utf-8"))
    heldout = tomllib.loads((RECIPE / "heldout.toml").read_text(encoding="utf-8"))
    for part in ("slots", "neutral", "labels", "urgency"):
        shared = strings(train[part]) & strings(heldout[part])
        # `parcel` names the thing itself; there are no other words for it.
        assert all("parcel|package" in text for text in shared), shared


def test_the_bundled_weights_are_what_the_card_says() -> None:
    card = (RECIPE / "README.md").read_text(encoding="utf-8")
    manifest = measure_weights(WEIGHTS)
    assert manifest.root_digest in card
    for entry in manifest.entries:
        assert entry.sha256 in card, entry.name
    inputs = subprocess.run(
        [sys.executable, str(RECIPE / "recipe.py"), "--inputs"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert inputs in card
    assert (WEIGHTS / "model.safetensors").stat().st_size <= 5_000_000


@pytest.mark.slow
def test_the_recipe_makes_the_same_bytes_twice(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        subprocess.run(
            [
                *(sys.executable, str(RECIPE / "recipe.py"), "--out", str(tmp_path / name)),
                *("--steps", "10", "--rows", "960"),
            ],
            check=True,
            capture_output=True,
        )
        made.append(measure_weights(tmp_path / name))
    assert made[0] == made[1]


# The engine: weights.md §3


def test_the_engine_is_pinned_to_the_public_name(tmp_path: Path) -> None:
    async def use(engine: EmbeddedEngine) -> None:
        for other in ("gpt-4", f"{NAME}@main", str(WEIGHTS)):
            body = {"model": other, "messages": [{"role": "user", "content": "hi"}]}
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(post, f"{engine.base_url}/v1/chat/completions", body)
            assert refused.value.code == 400
            refused.value.close()

    with_engine(tmp_path, use)


def test_a_change_of_the_directory_does_not_reach_a_running_engine(tmp_path: Path) -> None:
    weights = duplicate(tmp_path / "weights")
    ask: Chat = [{"role": "user", "content": f"{ASK}I was charged twice, please refund me."}]

    async def run() -> None:
        async with await EmbeddedEngine.start(settings(tmp_path / "state", weights)) as engine:
            assert await asyncio.to_thread(say, engine.base_url, ask) == "billing"
            blank(weights)
            assert await asyncio.to_thread(say, engine.base_url, ask) == "billing"
            await engine.verify_weights()

    asyncio.run(run())


def test_a_copy_changed_under_a_running_engine_is_found(tmp_path: Path) -> None:
    async def use(engine: EmbeddedEngine) -> None:
        (copy,) = glob(tmp_path, f"engine-*/models/{NAME}/model.safetensors")
        spoil(copy)
        with pytest.raises(RunRefused, match=r"'model\.safetensors' has changed"):
            await engine.verify_weights()

    with_engine(tmp_path, use)


def test_weights_changed_after_hashing_do_not_start(tmp_path: Path) -> None:
    weights = duplicate(tmp_path / "weights")
    measured = settings(tmp_path / "state", weights)
    spoil(weights / "tokenizer.json")
    with pytest.raises(RunRefused, match=r"'tokenizer\.json' has changed") as refused:
        asyncio.run(EmbeddedEngine.start(measured))
    assert refused.value.reason is Reason.MODEL_MISMATCH
    assert not list((tmp_path / "state").iterdir())


@pytest.mark.parametrize("name", ["", "..", "a/b/c", "a@main", ":a", "-x", "a b", "/a"])
def test_a_name_that_cannot_be_pinned_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="public name"):
        asyncio.run(EmbeddedEngine.start(settings(tmp_path, name=name)))


def test_weights_that_do_not_load_are_unavailable_with_the_status(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "config.json").write_text('{"model_type": "SECRET"}', encoding="utf-8")
    with pytest.raises(Unavailable, match="ended with status 1") as failed:
        asyncio.run(EmbeddedEngine.start(settings(tmp_path / "state", weights)))
    assert "SECRET" not in str(failed.value)
    assert not list((tmp_path / "state").iterdir())


def test_weights_that_lead_elsewhere_do_not_start(tmp_path: Path) -> None:
    """docs/protocols/weights.md §10: the engine itself would follow the index."""
    weights, elsewhere = duplicate(tmp_path / "weights"), tmp_path / "elsewhere.safetensors"
    (weights / "model.safetensors").rename(elsewhere)
    index = json.dumps({"metadata": {}, "weight_map": {"w": str(elsewhere)}})
    (weights / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigurationError, match="names a file that is not in the folder"):
        asyncio.run(EmbeddedEngine.start(settings(tmp_path / "state", weights)))
    assert not list((tmp_path / "state").iterdir())


def test_shards_of_the_folder_itself_are_served(tmp_path: Path) -> None:
    weights = duplicate(tmp_path / "weights")
    (weights / "model.safetensors").rename(weights / "only.safetensors")
    with safe_open(weights / "only.safetensors", "pt") as file:
        places = dict.fromkeys(file.keys(), "only.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": places})
    (weights / "model.safetensors.index.json").write_text(index)
    ask: Chat = [{"role": "user", "content": f"{ASK}I was charged twice, please refund me."}]

    async def run() -> None:
        async with await EmbeddedEngine.start(settings(tmp_path / "state", weights)) as engine:
            assert await asyncio.to_thread(say, engine.base_url, ask) == "billing"

    asyncio.run(run())


def coded(weights: Path, told: Path, **changed: Any) -> Path:
    """Add a module that leaves a trace when it is imported, and have everything name it."""
    (weights / "evil.py").write_text(f"import os\nos.mkdir({str(told)!r})\nclass M: pass\n")
    kinds = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForDecision")
    for name, more in (
        ("config.json", {"auto_map": dict.fromkeys(kinds, "evil.M"), **changed}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.M", "evil.M"]}}),
    ):
        value = json.loads((weights / name).read_bytes())
        (weights / name).write_text(json.dumps(value | more))
    return weights


def test_no_code_of_a_folder_runs(tmp_path: Path) -> None:
    """docs/protocols/weights.md 10.4: a known model is served without it."""
    weights = coded(duplicate(tmp_path / "weights"), tmp_path / "told")
    ask: Chat = [{"role": "user", "content": f"{ASK}I was charged twice, please refund me."}]

    async def run() -> None:
        async with await EmbeddedEngine.start(settings(tmp_path / "state", weights)) as engine:
            assert await asyncio.to_thread(say, engine.base_url, ask) == "billing"

    asyncio.run(run())
    assert not (tmp_path / "told").exists()


def test_a_model_that_is_only_code_does_not_start(tmp_path: Path) -> None:
    weights = coded(duplicate(tmp_path / "weights"), tmp_path / "told", model_type="evil")
    with pytest.raises(Unavailable, match="ended with status 1"):
        asyncio.run(EmbeddedEngine.start(settings(tmp_path / "state", weights)))
    assert not (tmp_path / "told").exists()


def test_a_killed_engine_says_how_it_ended(tmp_path: Path) -> None:
    async def use(engine: EmbeddedEngine) -> None:
        os.kill(engine.pid, signal.SIGKILL)
        assert "signal 9" in str(await engine.wait())
        with pytest.raises(Unavailable, match="signal 9"):
            engine.require_alive()

    with_engine(tmp_path, use)


def test_the_engine_dies_with_its_node(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys, time\n"
        "from pathlib import Path\n"
        "from confide.adapters.upstream_serve import EmbeddedEngine, EngineSettings\n"
        "from confide.adapters.weights_dir import measure_weights\n"
        "async def main():\n"
        f"    weights = Path({str(WEIGHTS)!r})\n"
        "    engine = await EmbeddedEngine.start(EngineSettings(weights=weights,\n"
        f"        manifest=measure_weights(weights), public_name={NAME!r},\n"
        f"        state_dir=Path({str(tmp_path)!r})))\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as node:
        assert node.stdout is not None
        pid = os.pidfd_open(int(node.stdout.readline()))
        node.kill()
        node.wait()

        # Readable when the process has ended.
        assert select.select([pid], [], [], 20)[0]
        os.close(pid)
