"""NVIDIA's statements about devices: reference manifests (RIM service) and OCSP answers.

The port `ReferenceSource`. Clauses docs/protocols/fetching.md#6 and #12; the ids and which
certificates are asked about: docs/protocols/nvidia.md 9, 11 and "OCSP". Nothing is verified here
but the manifest's own signature, so that its certificates can be asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from confide.adapters.bounded_http import Exchange
from confide.adapters.endorsement_http import Ask, TryAgain, all_of, both_of, plain_url
from confide.appraisal.nvidia_chips import CHIPS, KINDS, certified_names
from confide.crypto.errors import BadSignature
from confide.crypto.ocsp import is_about, parse_ocsp
from confide.crypto.ocsp_request import encode_ocsp_request
from confide.crypto.x509 import Certificate, parse_pem_chain
from confide.crypto.xmldsig import verify_enveloped
from confide.errors import FormatError, Reason
from confide.wire.evidence import NvidiaEndorsements, OcspAnswer, RimDocument
from confide.wire.json import JsonLimits, b64decode, parse_json
from confide.wire.rim import parse_rim, rim_driver_id, rim_switch_id, rim_vbios_id
from confide.wire.spdm import parse_report, read_gpu_fields
from confide.wire.spdm_switch import read_switch_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from confide.adapters.endorsement_http import Answer, EndorsementFetcher
    from confide.wire.evidence import GpuEvidence

__all__ = ["NVIDIA_OCSP", "NVIDIA_RIM", "DeviceNeeds", "NvidiaServices", "needs_of"]

NVIDIA_RIM: Final = "https://rim.attestation.nvidia.com"
NVIDIA_OCSP: Final = "https://ocsp.ndis.nvidia.com"
_CHAIN_LENGTH: Final = 5
# From: docs/protocols/nvidia.md 9 and 11: device certificates 1 to 3, manifest certificates 0 to 2.
_DEVICE_ASKED: Final = (1, 2, 3)
_RIM_ASKED: Final = (0, 1, 2)
_KEEP_RIM: Final = timedelta(days=7)
_KEEP_OCSP: Final = timedelta(hours=24)
# From: crypto/xmldsig.py and crypto/ocsp.py, the bounds of their readers; base64 in JSON.
_MAX_RIM: Final = 512 * 1024
_MAX_OCSP: Final = 16 * 1024
_NONCE_BYTES: Final = 32
_CLAUSE = "docs/protocols/fetching.md#12"


@dataclass(frozen=True, slots=True)
class _Manifest:
    """A manifest that is needed: its id, and what it has to describe."""

    id: str
    version: str
    edition: str
    product: str


@dataclass(frozen=True, slots=True)
class DeviceNeeds:
    """What appraising one device needs, by the device's own word."""

    chain: tuple[Certificate, ...]
    manifests: tuple[_Manifest, ...]


def _refuse(what: str, reason: Reason = Reason.RIM_MALFORMED) -> FormatError:
    return FormatError(what, reason=reason, clause=_CLAUSE)


def needs_of(device: GpuEvidence) -> DeviceNeeds:
    """
    Return what `device` says that it needs. Nothing is verified.

    Raises `FormatError` for a device that cannot be read.
    """
    chain = parse_pem_chain(
        device.chain_pem,
        max_certificates=_CHAIN_LENGTH,
        what="device chain",
        reason=Reason.CHAIN_MALFORMED,
    )
    if len(chain) != _CHAIN_LENGTH:
        raise _refuse("device chain: not five certificates", Reason.CHAIN_MALFORMED)
    names = certified_names(chain, device.kind)
    chip = next((n for n, chip in CHIPS.items() if names and chip.certified == names[0]), None)
    if chip is None:
        raise _refuse("device chain: a chip that is not known", Reason.ARCH_MISMATCH)
    edition = KINDS[device.kind].edition
    report = parse_report(device.report, KINDS[device.kind].profile)
    if device.kind == "switch":
        bios = read_switch_fields(report).bios_version
        return DeviceNeeds(chain, (_Manifest(rim_switch_id(bios), bios, edition, chip),))
    found = read_gpu_fields(report)
    driver, vbios = found.driver_version, found.vbios_version
    vbios_id = rim_vbios_id(found.project, found.project_sku, found.chip_sku, vbios)
    return DeviceNeeds(
        chain,
        (
            _Manifest(rim_driver_id(chip, driver), driver, edition, chip),
            _Manifest(vbios_id, vbios, edition, chip),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Question:
    """A certificate to ask OCSP about."""

    certificate: Certificate
    issuer: Certificate
    what: str


def _questions(chain: Sequence[Certificate], numbers: Iterable[int], what: str) -> list[_Question]:
    return [
        _Question(chain[number], chain[number + 1], f"certificate {number} of {what}")
        for number in numbers
        if number + 1 < len(chain)
    ]


class NvidiaServices:
    """Manifests and OCSP answers from NVIDIA; `rim` and `ocsp` are for stand-ins and mirrors."""

    def __init__(
        self,
        fetcher: EndorsementFetcher,
        *,
        rim: str = NVIDIA_RIM,
        ocsp: str = NVIDIA_OCSP,
    ) -> None:
        self._fetcher = fetcher
        self._rim = plain_url(rim, what="the URL of NVIDIA's manifest service")
        self._ocsp = plain_url(ocsp, what="the URL of NVIDIA's OCSP responder")

    async def endorsements(self, devices: tuple[GpuEvidence, ...]) -> NvidiaEndorsements:
        """
        Return the manifests and OCSP answers that appraising `devices` needs, each once.

        A device that cannot be read needs nothing: the verifier says why. Raises `Unavailable`.
        """
        manifests: dict[str, _Manifest] = {}
        asked: list[_Question] = []
        for device in devices:
            try:
                needs = needs_of(device)
            except FormatError:
                continue
            manifests.update({manifest.id: manifest for manifest in needs.manifests})
            asked += _questions(needs.chain, _DEVICE_ASKED, "the device's chain")
        found, answers = await both_of(
            all_of(self._manifest(manifest) for manifest in manifests.values()),
            self._answers(asked),
        )
        answers += await self._answers(
            [
                question
                for rim, chain in found
                for question in _questions(chain, _RIM_ASKED, f"manifest {rim.id}")
            ]
        )
        once = {answer.certificate_sha256: answer for answer in answers}
        return NvidiaEndorsements(tuple(rim for rim, _ in found), tuple(once.values()))

    async def _answers(self, questions: Iterable[_Question]) -> list[OcspAnswer]:
        once = {question.certificate.sha256: question for question in questions}
        return await all_of(self._answer(question) for question in once.values())

    async def _manifest(self, wanted: _Manifest) -> tuple[RimDocument, tuple[Certificate, ...]]:
        def read(
            answer: Answer,
        ) -> tuple[tuple[RimDocument, tuple[Certificate, ...]], datetime]:
            xml = _manifest_xml(answer.body, wanted.id)
            try:
                signed = verify_enveloped(xml)
            except BadSignature as error:
                raise _refuse("the manifest's own signature is wrong") from error
            rim = parse_rim(signed.root)
            if (rim.version.upper(), rim.edition, rim.product) != (
                wanted.version.upper(),
                wanted.edition,
                wanted.product,
            ):
                raise _refuse("the manifest describes another version or product")
            chain = signed.certificates
            return (RimDocument(wanted.id, xml), chain), min(each.not_after for each in chain)

        ask = Ask(
            service="NVIDIA RIM service",
            what=f"manifest {wanted.id}",
            advice=(
                "NVIDIA publishes manifests for released drivers and boards only; ask the operator "
                "for one, or pass a bundle that has it"
            ),
            request=Exchange(url=f"{self._rim}/v1/rim/{wanted.id}", max_bytes=_MAX_RIM),
            keep=_KEEP_RIM,
        )
        return await self._fetcher.fetch(ask, read)

    async def _answer(self, question: _Question) -> OcspAnswer:
        nonce = self._fetcher.token(_NONCE_BYTES)
        certificate = question.certificate

        def read(answer: Answer) -> tuple[OcspAnswer, datetime | None]:
            try:
                found = parse_ocsp(answer.body)
            except FormatError as error:
                if error.reason is Reason.OCSP_UNAVAILABLE:
                    raise TryAgain("the responder has no answer now") from error
                raise
            if not is_about(found, certificate, question.issuer):
                raise _refuse(
                    "the answer is about another certificate", Reason.OCSP_CERTID_MISMATCH
                )
            if answer.live and found.nonce not in {None, nonce}:
                raise _refuse("the answer has another nonce", Reason.OCSP_NONCE_MISMATCH)
            return OcspAnswer(certificate.sha256, answer.body), found.next_update

        ask = Ask(
            service="NVIDIA OCSP",
            what=f"status of {question.what} ({certificate.sha256[:16]}…)",
            advice="Check the connection to this host, or pass a bundle that has the answer",
            request=Exchange(
                url=self._ocsp,
                method="POST",
                body=encode_ocsp_request(certificate, question.issuer, nonce),
                content_type="application/ocsp-request",
                max_bytes=_MAX_OCSP,
            ),
            keep=_KEEP_OCSP,
            question=f"ocsp {certificate.sha256} {question.issuer.sha256}",
        )
        return await self._fetcher.fetch(ask, read)


def _manifest_xml(body: bytes, rim_id: str) -> bytes:
    """Return the XML out of the service's JSON (nvidia.md §3.4); other members are not ours."""
    value = parse_json(
        body, what="manifest", reason=Reason.RIM_MALFORMED, limits=JsonLimits(_MAX_RIM, 4)
    )
    if not isinstance(value, dict) or value.get("id") != rim_id:
        raise _refuse("the answer is another manifest, or none")
    text = value.get("rim")
    if not isinstance(text, str):
        raise _refuse("the answer holds no manifest")
    joined = text.replace("\n", "").replace("\r", "")
    return b64decode(joined, what="manifest", reason=Reason.RIM_MALFORMED)
