"""`confide proxy` as the process that people start, in front of a model node that is one too."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
from deployment import MODEL, WAIT_SECONDS, Installation

from confide.adapters.clock import SystemClock
from confide.adapters.software import running_kernel
from confide.client.expect import inference_expectation_for
from confide.client.local import local_reference
from confide.trust.roots import encode_roots_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deployment import Deployment, Node
    from stub_openai import StubOpenAI

    from confide.expectation import Expectation

CHAT: Any = {"model": MODEL, "messages": [{"role": "user", "content": "which label?"}]}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, stub: StubOpenAI) -> Installation:
    return Installation(tmp_path_factory.mktemp("proxy"), stub.url)


@pytest.fixture(scope="module")
def node(installation: Installation) -> Iterator[Node]:
    with installation.model_node() as running:
        yield running


@pytest.fixture(scope="module")
def wanted(installation: Installation) -> Expectation:
    return inference_expectation_for(
        local_reference(
            seed=installation.engine.seed(),
            roots=installation.roots,
            software=installation.software,
            kernel=running_kernel(),
            model=MODEL,
            weights=None,
            now=SystemClock().now(),
        )
    )


def command(installation: Installation, node: Node, wanted: Expectation, *more: str) -> list[str]:
    expectation, roots = installation.root / "wanted.json", installation.root / "roots.json"
    expectation.write_bytes(wanted.canonical())
    roots.write_bytes(encode_roots_file(installation.roots))
    return [
        *(sys.executable, "-m", "confide", "proxy", "--node", node.url, "--port", "0"),
        *("--expectation", str(expectation), "--roots", str(roots), *more),
    ]


def confide(installation: Installation, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "confide", *words],
        env=installation.environment, capture_output=True, text=True, check=False,
        timeout=WAIT_SECONDS,
    )  # fmt: skip


def test_it_serves_tells_keeps_and_stops(
    installation: Installation, node: Node, wanted: Expectation
) -> None:
    process = subprocess.Popen(
        command(installation, node, wanted, "--json"),
        env=installation.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert (ready["event"], ready["simulated"], ready["node"]) == ("ready", True, node.url)
        url, headers = ready["url"], {"authorization": f"Bearer {ready['token']}"}
        assert httpx2.post(f"{url}/v1/chat/completions", json=CHAT, timeout=60).status_code == 401
        answer = httpx2.post(f"{url}/v1/chat/completions", json=CHAT, timeout=60, headers=headers)
        assert answer.json()["choices"][0]["message"]["content"] == "billing"
        served = json.loads(process.stdout.readline())
        assert (served["status"], served["model"]) == (200, MODEL)
        assert served["receipt"] == answer.headers["x-request-id"]
        assert "label" not in json.dumps(served)
    finally:
        process.send_signal(signal.SIGTERM)
        rest, said = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, rest, said) == (0, "", "")
    listed = confide(installation, "receipts", "list")
    assert served["receipt"] in listed.stdout
    roots = str(installation.root / "roots.json")
    checked = confide(installation, "receipts", "verify", "--all", "--simulated-roots", roots)
    assert checked.returncode == 0, checked.stderr


def test_it_does_not_start_in_front_of_a_node_that_is_something_else(
    installation: Installation, node: Node, wanted: Expectation, stub: StubOpenAI
) -> None:
    prompts = stub.prompts
    other = replace(wanted, model=replace(wanted.model, name="another"))
    done = subprocess.run(
        command(installation, node, other),
        env=installation.environment, capture_output=True, text=True, check=False,
        timeout=WAIT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 10
    assert "model-mismatch" in done.stderr
    assert done.stdout == ""
    assert stub.prompts == prompts


def test_it_does_not_start_under_vendor_roots_or_without_a_node(
    installation: Installation, node: Node, wanted: Expectation
) -> None:
    words = command(installation, node, wanted)
    words[words.index("--roots") + 1] = "vendor"
    done = subprocess.run(
        words, env=installation.environment, capture_output=True, text=True, check=False,
        timeout=WAIT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 10
    assert "simulated-not-allowed" in done.stderr or "root-mismatch" in done.stderr
    words = command(installation, replace(node, url="http://127.0.0.1:9"), wanted)
    done = subprocess.run(
        words, env=installation.environment, capture_output=True, text=True, check=False,
        timeout=WAIT_SECONDS,
    )  # fmt: skip
    assert done.returncode == 20


def test_without_a_node_it_says_what_to_do(installation: Installation) -> None:
    done = confide(installation, "proxy")
    assert done.returncode == 2
    assert "confide up" in done.stderr
    done = confide(installation, "proxy", "--node", "http://127.0.0.1:9")
    assert done.returncode == 2
    assert "--expectation" in done.stderr


def test_the_live_view_says_what_is_trusted_and_what_was_asked(
    installation: Installation, node: Node, wanted: Expectation
) -> None:
    process = subprocess.Popen(
        command(installation, node, wanted, "--ui"),
        env=installation.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = ""
        while "confide-" not in said:
            said += process.stdout.readline()
        assert "SIMULATED" in said
        url = re.findall(r"OPENAI_BASE_URL=(\S+)", said)[0]
        token = re.findall(r"confide-[0-9a-f]{48}", said)[0]
        headers = {"authorization": f"Bearer {token}"}
        receipt = httpx2.post(
            f"{url}/chat/completions", json=CHAT, timeout=60, headers=headers
        ).headers["x-request-id"]
    finally:
        process.send_signal(signal.SIGTERM)
        seen, trouble = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, trouble) == (0, "")
    assert "proven" in seen
    assert receipt in seen
    assert "which label?" not in seen


@pytest.mark.container
def test_the_local_node_is_taken_where_none_is_named(deployment: Deployment) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "confide", "proxy", "--port", "0", "--json", "--no-token"],
        env=deployment.installation.environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert (ready["node"], ready["simulated"], ready["token"]) == (
            deployment.model_url, True, None
        )  # fmt: skip
        answer = httpx2.post(f"{ready['url']}/v1/chat/completions", json=CHAT, timeout=60)
        assert answer.headers["x-request-id"].startswith("rcpt-")
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 0


def _files(path: Path) -> list[Path]:
    return [found for found in path.rglob("*") if found.is_file()]


def test_no_prompt_is_anywhere_on_the_disk(installation: Installation) -> None:
    for path in _files(installation.root):
        assert b"which label?" not in path.read_bytes(), path
