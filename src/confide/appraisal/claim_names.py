"""The closed vocabulary of claims: the same names for every service, so that two can be compared.

Clauses: docs/protocols/services.md §4, which says what each claim takes to be proven.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["ClaimName"]


class ClaimName(StrEnum):
    """What a relying party may want to know about one service, worst news first when shown."""

    # The processor
    HARDWARE = "hardware"  # a genuine TEE of Intel or AMD signed the evidence
    TCB = "tcb"  # firmware and microcode at a level the policy accepts
    DEBUG_OFF = "debug-off"  # the host cannot read the memory by design
    PLATFORM = "platform"  # the machine is on the caller's list
    # This conversation
    FRESHNESS = "freshness"  # made for the nonce that the caller drew
    KEYS = "keys"  # the keys that clients use are in the signed report data
    TLS = "tls"  # the TLS connection ended in the attested machine
    KEY_LIFETIME = "key-lifetime"  # keys do not outlive the code that was attested
    # What was started
    LAUNCH = "launch"  # firmware, kernel and command line are ones the caller knows
    EVENT_LOG = "event-log"  # logs replay to the signed registers
    WORKLOAD = "workload"  # the launch document is the one that hardware measured
    WORKLOAD_EXPECTED = "workload-expected"  # and it is one the caller expects
    IMAGES_PINNED = "images-pinned"  # every image in it is named by digest
    IMAGE_PROVENANCE = "image-provenance"  # and was built by whom the caller says (Sigstore)
    WORKLOAD_COMPLETE = "workload-complete"  # nothing can start beside it afterwards
    OPERATOR_ACCESS = "operator-access"  # the operator cannot log in or read logs
    MODEL_WEIGHTS = "model-weights"  # the weights are measured
    # Devices
    GPU = "gpu"  # genuine NVIDIA devices, in confidential mode
    GPU_FIRMWARE = "gpu-firmware"  # their measurements are NVIDIA's reference values
    GPU_FRESHNESS = "gpu-freshness"  # made for the same nonce
    GPU_TOPOLOGY = "gpu-topology"  # the set is complete, switches included
    GPU_BINDING = "gpu-binding"  # the processor's evidence commits to the devices' evidence
    GPU_COLOCATION = "gpu-colocation"  # never proven: no TDISP
    # After
    RESPONSE_SIGNATURE = "response-signature"  # one answer was signed by an attested key
    PHYSICAL_ATTACK = "physical-attack"  # never proven: an extracted key signs anything
