"""The two roots of NVIDIA's device attestation, pinned as DER with origin and date.

Docs: docs/protocols/nvidia.md. `NVIDIA_ROOTS` is what a relying party passes for real hardware;
simulated roots are made by the simulator and passed explicitly, never selected by evidence.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Final

__all__ = ["NVIDIA_ROOTS", "NvidiaRoots"]


@dataclass(frozen=True, slots=True)
class NvidiaRoots:
    """
    Who is trusted: `device` signs device certificates, `rim` signs manifests; both DER.

    `simulated` is true for everything that is not NVIDIA's, and travels into every result.
    """

    device: bytes = field(repr=False)
    rim: bytes = field(repr=False)
    simulated: bool

    @property
    def sha256(self) -> tuple[str, str]:
        """SHA-256 (hex) of the DER of the device root and of the manifest root."""
        return hashlib.sha256(self.device).hexdigest(), hashlib.sha256(self.rim).hexdigest()


# CN=NVIDIA Device Identity CA, O=NVIDIA; P-384; 2021-11-05 to 9999-12-31.
# From: NVIDIA/nvtrust 028173093d43dbf37364bdc39ad7e696bccbce2e, the same bytes in
# google/go-nvattest-tools 89e19780366048c3b106c9ed2e1654d189c741a3; taken 2026-11-22.
# SHA-256: 102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48
_DEVICE_ROOT: Final = base64.b64decode(
    "MIICCzCCAZCgAwIBAgIQLTZwscoQBBHB/sDoKgZbVDAKBggqhkjOPQQDAzA1MSIwIAYDVQQDDBlOVklESUEgRGV2"
    "aWNlIElkZW50aXR5IENBMQ8wDQYDVQQKDAZOVklESUEwIBcNMjExMTA1MDAwMDAwWhgPOTk5OTEyMzEyMzU5NTla"
    "MDUxIjAgBgNVBAMMGU5WSURJQSBEZXZpY2UgSWRlbnRpdHkgQ0ExDzANBgNVBAoMBk5WSURJQTB2MBAGByqGSM49"
    "AgEGBSuBBAAiA2IABA5MFKM7+KViZljbQSlgfky/RRnEQScW9NDZF8SXgAW96r6u/Ve8ZggtcYpPi2BS4VFu6KfE"
    "IrhN6FcHG7WP05W+oM+hxj7nyA1r1jkB2Ry70YfThX3Ba1zOryOP+MJ9vaNjMGEwDwYDVR0TAQH/BAUwAwEB/zAO"
    "BgNVHQ8BAf8EBAMCAQYwHQYDVR0OBBYEFFeF/4PyY8xlfWi3Olv0jUrL+0lfMB8GA1UdIwQYMBaAFFeF/4PyY8xl"
    "fWi3Olv0jUrL+0lfMAoGCCqGSM49BAMDA2kAMGYCMQCPeFM3TASsKQVaT+8S0sO9u97PVGCpE9d/I42IT7k3UUOL"
    "SR/qvJynVOD1vQKVXf0CMQC+EY55WYoDBvs2wPAH1Gw4LbcwUN8QCff8bFmV4ZxjCRr4WXTLFHBKjbfneGSBWwA="
)

# CN=NVIDIA CoRIM signing Root CA, O=NVIDIA, C=US; P-384; 2023-03-16 to 2053-03-08.
# From: the same two commits; also NVIDIA/attestation-sdk 73c032ebff680ca6d2ba06f4006b511491b71ce9.
# SHA-256: 12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1
_RIM_ROOT: Final = base64.b64decode(
    "MIICKTCCAbCgAwIBAgIQRdrjoA5QN73fh1N17LXicDAKBggqhkjOPQQDAzBFMQswCQYDVQQGEwJVUzEPMA0GA1UE"
    "CgwGTlZJRElBMSUwIwYDVQQDDBxOVklESUEgQ29SSU0gc2lnbmluZyBSb290IENBMCAXDTIzMDMxNjE1MzczNFoY"
    "DzIwNTMwMzA4MTUzNzM0WjBFMQswCQYDVQQGEwJVUzEPMA0GA1UECgwGTlZJRElBMSUwIwYDVQQDDBxOVklESUEg"
    "Q29SSU0gc2lnbmluZyBSb290IENBMHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEuECyi9vNM+Iw2lfUzyBldHAwaC1H"
    "F7TCgp12QcEyUTm3Tagxwr48d55+K2VIlWYIDk7NlAIQdcV/Ff7euGLI+Qauj93HsSI4WX298PpW54RTgz9tC+Q6"
    "84caR/BXWEeZo2MwYTAdBgNVHQ4EFgQUpaXrOPK4ZDAk08DBskn594zeZjAwHwYDVR0jBBgwFoAUpaXrOPK4ZDAk"
    "08DBskn594zeZjAwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMCAQYwCgYIKoZIzj0EAwMDZwAwZAIwHGDy"
    "scDP6ihHqRvZlI3eqZ4YkvjE1duaN84tAHRVgxVMvNrp5Tnom3idHYGW/dskAjATvjIx6VzHm/4e2GiZAyZEIUBD"
    "OKPzp5ei/A0iUZpdvngenDwV8Qa/wGdiTmJ7Bp4="
)

NVIDIA_ROOTS: Final = NvidiaRoots(device=_DEVICE_ROOT, rim=_RIM_ROOT, simulated=False)
