"""Starting: importing the verifier, and `confide verify` of a saved bundle as a process of its own.

Processes are started in turns with a bare interpreter, and the best of several counts: whatever
else the machine does can only add. Bytecode is compiled first, as installing a package does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.rows import row

from confide.simulator.near import SimulatedNear, encode_report
from confide.trust.roots import encode_roots_file
from confide.wire.bundle import encode_bundle
from confide.wire.service import Capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.rows import Row

_NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
_AT = "2026-11-22T13:00:00Z"
_NONCE = bytes(range(32))
_ROUNDS = 15
# What one verification of the bundle leaves imported, the command line apart.
_LIST = """
import sys
from confide.cli.main import main
try:
    main()
except SystemExit as ended:
    if ended.code:
        raise
ours = (name for name in sys.modules if name.startswith("confide.") and ".cli" not in name)
print("import " + ", ".join(sorted(ours)), file=sys.stderr)
"""


def start_rows() -> Iterator[Row]:
    """Yield import times (beyond the bare interpreter) and the time of a whole command."""
    with tempfile.TemporaryDirectory(prefix="confide-bench-") as folder:
        words = _bundle(Path(folder))
        environment = {
            name: value
            for name, value in os.environ.items()  # noqa: TID251 - what the processes inherit
            if name != "PYTHONDONTWRITEBYTECODE"
        }
        environment["PYTHONPYCACHEPREFIX"] = str(Path(folder, "compiled"))
        listed = subprocess.run(
            [sys.executable, "-c", _LIST, *words],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        arms = (
            ["-c", "pass"],
            ["-c", "import confide; confide.verify"],
            ["-c", "import confide; confide.verify_receipt"],
            ["-c", listed.stderr],
            ["-m", "confide", *words],
        )
        found = [[_spent(arm, environment) for arm in arms] for _ in range(_ROUNDS + 1)][1:]
    bare, verify, receipt, loaded, command = (min(column) for column in zip(*found, strict=True))
    for name, spent, limit in (
        ("import confide; confide.verify", verify, 150),
        ("import confide; confide.verify_receipt", receipt, 150),
        ("import everything that verifying a bundle of 8 GPUs loads", loaded, None),
    ):
        value = spent - bare
        yield row(
            f"{name}, beside starting Python",
            value,
            "ms",
            peer=bare,
            budget="" if limit is None else f"<= {limit}",
            met=None if limit is None else value <= limit,
        )
    yield row(
        "confide verify of a saved bundle of 8 GPUs, the process, beside starting Python",
        command,
        "ms",
        peer=bare,
        budget="<= 600",
        met=command <= 600,
    )


def _bundle(folder: Path) -> list[str]:
    """Write the evidence of one SIMULATED machine with 8 GPUs; return the words of the command."""
    near = SimulatedNear(b"bench", _NOW, nodes=1)
    capture = Capture(
        documents={"report": encode_report(near.direct_report(_NONCE))},
        format="near",
        nonce=_NONCE,
        tls_spki_sha256=near.nodes[0].spki_sha256,
        at=_NOW,
        url="https://near.example/v1/attestation/report",
    )
    bundle, roots = folder / "bundle.json", folder / "roots.json"
    bundle.write_bytes(encode_bundle(capture, near.endorsements(_NOW)))
    roots.write_bytes(encode_roots_file(near.roots()))
    options = ["--policy", "audit", "--simulated-roots", str(roots), "--at", _AT]
    return ["verify", str(bundle), *options]


def _spent(words: list[str], environment: dict[str, str]) -> float:
    """Return the milliseconds of one process of Python; it must end well."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    return 1000 * (time.perf_counter() - start)
