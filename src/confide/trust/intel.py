"""Intel's root for TDX: the only vendor anchor a TDX verdict may rest on.

Intel SGX Root CA, self-signed, P-256, valid 2018-05-21 to 2049-12-31.

- SHA-256 of the DER: 44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3
- SHA-256 of its SubjectPublicKeyInfo:
  a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e
- Source: Intel_SGX_Provisioning_Certification_RootCA.cer of Intel's certificate service, as
  embedded in Phala-Network/dcap-qvl (src/TrustedRootCA.der, commit 9bffe30); compared
  with the root in genuine quotes of four origins. Date: 2026-11-22.

Tests recompute both digests.
"""

from __future__ import annotations

import base64
from typing import Final

from confide.trust.anchors import TdxAnchor, TdxNames

__all__ = ["INTEL_TDX_ANCHOR"]

_DER: Final = base64.b64decode(
    "MIICjzCCAjSgAwIBAgIUImUM1lqdNInzg7SVUr9QGzknBqwwCgYIKoZIzj0EAwIwaDEaMBgGA1UEAwwRSW50ZWwgU0dY"
    "IFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwC"
    "Q0ExCzAJBgNVBAYTAlVTMB4XDTE4MDUyMTEwNDUxMFoXDTQ5MTIzMTIzNTk1OVowaDEaMBgGA1UEAwwRSW50ZWwgU0dY"
    "IFJvb3QgQ0ExGjAYBgNVBAoMEUludGVsIENvcnBvcmF0aW9uMRQwEgYDVQQHDAtTYW50YSBDbGFyYTELMAkGA1UECAwC"
    "Q0ExCzAJBgNVBAYTAlVTMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEC6nEwMDIYZOj/iPWsCzaEKi71OiOSLRFhWGj"
    "bnBVJfVnkY4u3IjkDYYL0MxO4mqsyYjlBalTVYxFP2sJBK5zlKOBuzCBuDAfBgNVHSMEGDAWgBQiZQzWWp00ifODtJVS"
    "v1AbOScGrDBSBgNVHR8ESzBJMEegRaBDhkFodHRwczovL2NlcnRpZmljYXRlcy50cnVzdGVkc2VydmljZXMuaW50ZWwu"
    "Y29tL0ludGVsU0dYUm9vdENBLmRlcjAdBgNVHQ4EFgQUImUM1lqdNInzg7SVUr9QGzknBqwwDgYDVR0PAQH/BAQDAgEG"
    "MBIGA1UdEwEB/wQIMAYBAf8CAQEwCgYIKoZIzj0EAwIDSQAwRgIhAOW/5QkR+S9CiSDcNoowLuPRLsWGf/Yi7GSX94Bg"
    "wTwgAiEA4J0lrHoMs+Xo5o/sX6O9QWxHRAvZUGOdRQ7cvqRXaqI="
)

INTEL_TDX_ANCHOR: Final = TdxAnchor(
    der=_DER,
    names=TdxNames(
        root="Intel SGX Root CA",
        pck_authorities=("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"),
        pck_leaf="Intel SGX PCK Certificate",
        tcb_signer="Intel SGX TCB Signing",
    ),
    simulated=False,
)
