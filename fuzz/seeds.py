"""Genuine inputs: what simulated nodes make, and the shared vectors where they are at hand.

The simulated nodes are those of the tests (`tests/simulators`); everything is SIMULATED and
deterministic. `CONFIDE_VECTORS` names the folder of vectors, else `../shared/vectors` is tried.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import nodes
import runs

from confide.crypto.x509 import split_pem_chain
from confide.errors import Reason
from confide.simulator.nvidia import SimulatedGpuSet, simulated_ppcie
from confide.simulator.nvidia_gpu import SimulatedGpu
from confide.wire.collateral import parse_collateral
from confide.wire.evidence import encode_evidence_file
from confide.wire.json import jcs
from confide.wire.tdx import parse_quote

if TYPE_CHECKING:
    from confide.receipts.file import ReceiptFile
    from confide.wire.collateral import Collateral
    from confide.wire.evidence import EvidenceBundle, GpuEvidence

_REPOSITORY = Path(__file__).resolve().parent.parent
_MAX_VECTORS = 8
_MAX_VECTOR_BYTES = 64 * 1024


def vectors(pattern: str) -> tuple[bytes, ...]:
    """Return a few shared vectors that match `pattern`; none where the vectors are absent."""
    root = Path(os.environ.get("CONFIDE_VECTORS", _REPOSITORY.parent / "shared" / "vectors"))
    found = [path for path in sorted(root.glob(pattern)) if path.is_file()]
    small = [path for path in found if path.stat().st_size <= _MAX_VECTOR_BYTES]
    # Spread over the names, so that one family of files does not fill the list.
    return tuple(path.read_bytes() for path in small[:: max(1, len(small) // _MAX_VECTORS)])


@cache
def receipt() -> ReceiptFile:
    """The receipt file of one run, with all its evidence."""
    return runs.tell()


def asking_receipt() -> ReceiptFile:
    """The receipt file of a run with secrets and state."""
    return runs.tell(runs.Story("asking", secrets=("db-password", "TOKEN=token"), state=True))


def agent() -> EvidenceBundle:
    """Channel evidence of an agent node."""
    return receipt().agent_before


def model() -> EvidenceBundle:
    """Channel evidence of a model node, with one GPU."""
    bundle = receipt().model_before
    if bundle is None:
        raise RuntimeError("the simulated run has a model node")
    return bundle


@cache
def collateral() -> Collateral:
    """The collateral of the simulated TDX platform."""
    return parse_collateral(agent().collateral)


@cache
def evidence_files() -> tuple[bytes, ...]:
    """Self-contained evidence of both roles."""
    return encode_evidence_file(agent()), encode_evidence_file(model())


@cache
def switch() -> GpuEvidence:
    """Return the evidence of a switch of a simulated system."""
    return simulated_ppcie(nodes.SEED, now=nodes.NOW).collect(b"n" * 32)[-1]


def _blackwell_chain() -> bytes:
    gpus = SimulatedGpuSet(nodes.SEED, (SimulatedGpu(chip="GB100"),), now=nodes.NOW)
    return gpus.collect(b"n" * 32)[0].chain_pem


@cache
def chains() -> tuple[bytes, ...]:
    """PEM chains: of the quote, of the collateral, of the GPU."""
    known = collateral()
    return (
        parse_quote(agent().quote).pck_chain,
        known.pck_crl_chain,
        known.tcb_info_chain,
        model().devices[0].chain_pem,
        _blackwell_chain(),
    )


@cache
def certificates() -> tuple[bytes, ...]:
    """DER certificates: platform, authorities, GPU devices."""
    found: list[bytes] = []
    for pem in chains():
        found += split_pem_chain(
            pem, max_certificates=8, what="seed", reason=Reason.CHAIN_MALFORMED
        )
    return tuple(dict.fromkeys(found))


def expectation() -> bytes:
    """The Expectation that the simulated nodes meet, canonical."""
    return receipt().expectation


@cache
def documents(name: str) -> tuple[bytes, ...]:
    """The JSON part `name` of both bundles."""
    return tuple(jcs(getattr(bundle, name)) for bundle in (agent(), model()))
