"""Candidates of stage `snp`: an honest simulated machine, and one fault at a time."""

from __future__ import annotations

import base64
import textwrap
from typing import TYPE_CHECKING, Any

from confide.simulator.snp import SimulatedSnpLaunch, SimulatedSnpMachine, SnpFault
from confide.simulator.snp_faults import FAULTS
from confide.wire.snp import Product, SigningKeyKind
from conformance.own.candidate import NOW, REPORT_DATA, SEED, Candidate

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["candidates", "document", "pem_of"]

_LAUNCH = SimulatedSnpLaunch(measurement=b"\1" * 48, host_data=b"\2" * 32)
_HONEST = SimulatedSnpMachine(SEED, NOW)


def document() -> dict[str, Any]:
    """Return the top of the index: a strict policy that the honest machine meets."""
    (floors,) = _HONEST.policy(_LAUNCH).floors
    order = ("boot_loader", "tee", "snp", "microcode")
    return {
        "tcb_order": list(order),
        "default_policy": {
            "products": ["Milan"],
            "min_reported": [getattr(floors.reported, name) for name in order],
            "min_committed": [getattr(floors.committed, name) for name in order],
            "min_launch": [getattr(floors.launch, name) for name in order],
            "measurement": _LAUNCH.measurement.hex(),
            "host_data": _LAUNCH.host_data.hex(),
            "id_key_digest": _LAUNCH.id_key_digest.hex(),
            "author_key_digest": _LAUNCH.author_key_digest.hex(),
            "chips": [_HONEST.chip_id.hex()],
            "allow_debug": False,
            "allow_migration": False,
            "allow_vlek": False,
            "allow_cxl": False,
            "require_crl": True,
            "require_alias_check": True,
            "max_vmpl": 0,
            "expected_report_data": REPORT_DATA.hex(),
        },
    }


def pem_of(ders: list[bytes]) -> bytes:
    """Return the PEM blocks of `ders`, in order."""
    blocks = (
        "\n".join(
            (
                "-----BEGIN CERTIFICATE-----",
                *textwrap.wrap(base64.b64encode(der).decode("ascii"), 64),
                "-----END CERTIFICATE-----\n",
            )
        )
        for der in ders
    )
    return "".join(blocks).encode("ascii")


def _candidate(slug: str, machine: SimulatedSnpMachine, **rest: Any) -> Candidate:
    anchors = _HONEST.roots().anchors
    case: dict[str, Any] = {
        "report": "report.bin",
        "leaf": "leaf.der",
        "ask_ark": "ask-ark.pem",
        "anchor": "simulated",
        "ark": "ark.pem",
        "ark_products": [str(anchor.product) for anchor in anchors],
        "now": int(NOW.timestamp()),
        "policy": rest.pop("policy", {}),
    }
    files = {
        "report.bin": machine.report(_LAUNCH, report_data=REPORT_DATA),
        "leaf.der": machine.leaf_der,
        "ask-ark.pem": machine.chain_pem,
        "ark.pem": pem_of([anchor.der for anchor in anchors]),
    }
    if machine.crl_der is not None:
        case["crl"], files["crl.der"] = "crl.der", machine.crl_der
    return Candidate(slug, case, files, **rest)


def candidates() -> Iterator[Candidate]:
    """Yield honest machines of every product and key, the faults, and refusals of a policy."""
    yield _candidate("honest", _HONEST)
    for product in (Product.GENOA, Product.TURIN):
        machine = SimulatedSnpMachine(SEED, NOW, product=product)
        other: dict[str, Any] = {"products": [str(product)], "chips": [machine.chip_id.hex()]}
        other |= dict.fromkeys(("min_reported", "min_committed", "min_launch"))
        yield _candidate(f"honest-{product.lower()}", machine, policy=other)
    vlek = SimulatedSnpMachine(SEED, NOW, kind=SigningKeyKind.VLEK)
    any_chip = {"allow_vlek": True, "chips": None}
    yield _candidate("honest-vlek", vlek, policy=any_chip)
    for fault in SnpFault:
        machine = SimulatedSnpMachine(SEED, NOW, fault=fault)
        yield _candidate(fault.value, machine, reason=FAULTS[fault].reason)
    refused = {"chips": None}
    yield _candidate("vlek-refused", vlek, reason="vlek-not-allowed", policy=refused)
    genoa = {"products": ["Genoa"]}
    yield _candidate("product-refused", _HONEST, reason="product-not-allowed", policy=genoa)
    simulated = {"allow_simulated": False}
    yield _candidate("simulated-refused", _HONEST, reason="simulated-not-allowed", policy=simulated)
    blocked = {"blocked_chips": [_HONEST.chip_id.hex()]}
    yield _candidate("chip-blocked", _HONEST, reason="platform-not-allowed", policy=blocked)
