"""NEAR AI's own client against a node process, where one is at hand.

`CONFIDE_NEAR_SDK` names a folder with `node_modules/@nearai/inference-sdk` and what it stands on.
The package is for another language than this project's, so nothing here installs it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_near_face_process import _answer, serving

FOLDER = os.environ.get("CONFIDE_NEAR_SDK", "")
SCRIPT = Path(__file__).with_name("near_sdk.mjs")
SECRET = {"role": "user", "content": "secret"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "secret"}]}


@pytest.mark.skipif(
    not FOLDER or shutil.which("node") is None,
    reason="NEAR'S OWN CLIENT NOT RUN: it needs node and CONFIDE_NEAR_SDK",
)
@pytest.mark.parametrize("algorithm", ["ecdsa", "ed25519"])
def test_the_client_of_near_chats_and_verifies(tmp_path: Path, algorithm: str) -> None:
    seen: list[Any] = []

    async def listening(peer: Any, body: bytes) -> None:
        seen.append(json.loads(body))
        await _answer(peer, body)

    async def main() -> str:
        # A module finds its packages from where it lies.
        script = Path(FOLDER) / f"confide-{os.getpid()}.mjs"
        await asyncio.to_thread(shutil.copyfile, SCRIPT, script)
        try:
            async with serving(tmp_path, listening) as place:
                process = await asyncio.create_subprocess_exec(
                    "node",
                    str(script),
                    place.node.url,
                    algorithm,
                    stdout=asyncio.subprocess.PIPE,
                )
                output, _ = await process.communicate()
                assert process.returncode == 0
                return output.decode()
        finally:
            await asyncio.to_thread(script.unlink)

    assert json.loads(asyncio.run(main())) == [["hello", "provider_tee"]] * 4
    assert [asked["messages"] for asked in seen] == [[SECRET], [PARTS], [SECRET], [SECRET]]
    assert seen[2]["tools"][0]["function"]["parameters"] == {"type": "object"}
