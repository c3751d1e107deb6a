"""What each claim means, in words: what is proven by it, what is not, and what to ask for.

Clauses: docs/protocols/services.md §4. `confide verify --explain` teaches from this table.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from confide.appraisal.claim_names import ClaimName

__all__ = ["WORDS", "ClaimWords"]


class ClaimWords(NamedTuple):
    """`proven`: what a pass shows; `otherwise`: what could be else; `todo`: what to ask for."""

    proven: str
    otherwise: str
    todo: str


WORDS: Final[dict[ClaimName, ClaimWords]] = {
    ClaimName.HARDWARE: ClaimWords(
        "A genuine Intel TDX or AMD SEV-SNP processor signed this; certificates, revocation lists "
        "and vendor statements were checked up to the vendor's root.",
        "Anybody could have written it.",
        "Get current endorsements (--fetch); if that changes nothing, do not trust this machine.",
    ),
    ClaimName.TCB: ClaimWords(
        "Firmware and microcode are at a level your policy accepts.",
        "Known attacks on this level may open the machine to its owner.",
        "Ask for newer firmware, or write the level that you can live with into the policy.",
    ),
    ClaimName.DEBUG_OFF: ClaimWords(
        "Debugging, migration and other doors for the host are closed by configuration.",
        "The host can read or steer the guest.",
        "Ask for a production machine; nothing here is private.",
    ),
    ClaimName.PLATFORM: ClaimWords(
        "The machine is on your list.",
        "Any genuine machine would do, also one whose key was extracted: list the platforms you "
        "trust (tdx.platforms, snp.chips).",
        "List the platforms you trust: tdx.platforms, snp.chips.",
    ),
    ClaimName.FRESHNESS: ClaimWords(
        "The evidence was made after you drew your nonce.",
        "It may be old; the machine may have changed or be gone.",
        "Draw a nonce, capture again, and pass it: --nonce HEX.",
    ),
    ClaimName.KEYS: ClaimWords(
        "The keys that clients encrypt to, or that sign answers, stand in what the processor "
        "signed.",
        "Whoever presents the keys may not be the machine.",
        "Do not send anything to these keys.",
    ),
    ClaimName.TLS: ClaimWords(
        "The TLS connection you saw ends in the attested machine.",
        "Somebody in between may end TLS and read everything.",
        "Fetch the evidence over the connection you will use.",
    ),
    ClaimName.KEY_LIFETIME: ClaimWords(
        "Keys die with the code that was attested.",
        "Another version of the software, also a later one, may hold the same keys.",
        "Ask for keys that are made at boot, or list the key providers you trust.",
    ),
    ClaimName.LAUNCH: ClaimWords(
        "Firmware, kernel, command line and initial file system are ones you know.",
        "Genuine hardware runs something; you do not know what.",
        "List the registers you expect (tdx.mrtd, tdx.rtmr0 …, snp.measurements), or the OS image "
        "(workload.os_images).",
    ),
    ClaimName.EVENT_LOG: ClaimWords(
        "The log of what was measured reproduces the registers the processor signed.",
        "What the log says may be invented.",
        "Ask for the log that replays to these registers.",
    ),
    ClaimName.WORKLOAD: ClaimWords(
        "The launch document presented is the one the hardware measured, byte for byte.",
        "Another document may have been started.",
        "Ask for the exact launch document, byte for byte.",
    ),
    ClaimName.WORKLOAD_EXPECTED: ClaimWords(
        "That document is one you listed.",
        "It is some document; read it, then list its SHA-256 (workload.documents).",
        "Read the launch document, then list its SHA-256: workload.documents.",
    ),
    ClaimName.IMAGES_PINNED: ClaimWords(
        "Every image in the launch document is named by digest.",
        "What a tag names can be replaced at any time.",
        "Ask the operator to name images by digest.",
    ),
    ClaimName.IMAGE_PROVENANCE: ClaimWords(
        "Every image was built and signed by an identity you listed (Sigstore).",
        "You know which bytes run, not who made them from which source.",
        "Give the Sigstore bundles, and list who may build: provenance.identities.",
    ),
    ClaimName.WORKLOAD_COMPLETE: ClaimWords(
        "Nothing in the launch document can start other software later.",
        "The measured part may only be a launcher: what serves you may have come later.",
        "Ask the operator to measure everything that runs; a launcher can start anything.",
    ),
    ClaimName.OPERATOR_ACCESS: ClaimWords(
        "The launch document gives the operator no shell, no logs, no settings.",
        "The operator may read logs or steer the service from outside.",
        "Ask the operator to close logs and shells in the launch document.",
    ),
    ClaimName.MODEL_WEIGHTS: ClaimWords(
        "The model's weights are measured.",
        "Another model, or a changed one, may answer under this name.",
        "Ask for measured weights.",
    ),
    ClaimName.GPU: ClaimWords(
        "Genuine NVIDIA devices in confidential mode, none revoked.",
        "The model may run on hardware that its owner can read.",
        "Ask for GPU evidence, and get its endorsements (--fetch).",
    ),
    ClaimName.GPU_FIRMWARE: ClaimWords(
        "Driver and firmware measurements are NVIDIA's reference values.",
        "The devices may run other firmware, or be in developer mode.",
        "Get the manifests (--fetch); a mismatch means firmware that NVIDIA does not know.",
    ),
    ClaimName.GPU_FRESHNESS: ClaimWords(
        "The devices answered for your nonce.",
        "Their evidence may be old.",
        "Capture again with a nonce of yours.",
    ),
    ClaimName.GPU_TOPOLOGY: ClaimWords(
        "The set of devices is complete; links between them go through attested switches.",
        "Traffic between GPUs may pass through something unproven.",
        "Ask for the evidence of all devices, switches included.",
    ),
    ClaimName.GPU_BINDING: ClaimWords(
        "The processor signed a digest of the devices' evidence.",
        "Processor and devices were presented together, by nobody's word but the service's.",
        "Ask for report data that covers the evidence of the devices.",
    ),
    ClaimName.GPU_COLOCATION: ClaimWords(
        "Devices and processor are in one machine.",
        "No system can prove this before TDISP: genuine evidence of other GPUs may be relayed.",
        "Nothing: wait for TDISP, or accept it.",
    ),
    ClaimName.RESPONSE_SIGNATURE: ClaimWords(
        "One answer was signed with an attested key, over the exact bytes you hold.",
        "Nothing ties an answer to the machine.",
        "Keep request, response and signature, and verify them together.",
    ),
    ClaimName.PHYSICAL_ATTACK: ClaimWords(
        "Nobody with hands on the machine has taken its keys.",
        "No remote check can prove this: an extracted key signs anything.",
        "Choose who runs the machine; list the platforms you trust.",
    ),
}
