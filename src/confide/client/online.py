"""Everything a relying party needs to ask services and vendors over the network, put together.

Clauses: docs/protocols/fetching.md. Used by the command line and by the asynchronous public face.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from confide.adapters.amd_kds import AMD_KDS, AmdKds
from confide.adapters.bounded_http import FetchLimits, open_http
from confide.adapters.endorse import EndorsementSources
from confide.adapters.endorsement_cache import DiskCache, NoCache
from confide.adapters.endorsement_http import EndorsementFetcher
from confide.adapters.intel_pcs import INTEL_PCS, INTEL_ROOT_CRL, IntelPcs
from confide.adapters.nvidia_nras import NVIDIA_NRAS, NrasService
from confide.adapters.nvidia_services import NVIDIA_OCSP, NVIDIA_RIM, NvidiaServices
from confide.adapters.service_http import ServiceHttp, service_limits

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path

    from confide.ports import Clock, Entropy, Sleeper

__all__ = ["Online", "VendorServices", "open_online"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorServices:
    """
    Base URLs of the vendors' services; the defaults are theirs.

    `pccs` (`https://host:8081`) takes the place of Intel's two. Nothing of this is trusted.
    """

    pccs: str | None = None
    pcs: str = INTEL_PCS
    root_crl: str = INTEL_ROOT_CRL
    kds: str = AMD_KDS
    rim: str = NVIDIA_RIM
    ocsp: str = NVIDIA_OCSP
    nras: str = NVIDIA_NRAS


@dataclass(frozen=True, slots=True)
class Online:
    """
    The network, for one command or one process.

    `service` asks for evidence, `sources` for endorsements, `nras` for a token of NVIDIA's remote
    service where one is wanted.
    """

    service: ServiceHttp
    sources: EndorsementSources
    nras: NrasService


@asynccontextmanager
async def open_online(
    *,
    clock: Clock,
    entropy: Entropy,
    cache: Path | None,
    services: VendorServices | None = None,
    fresh: bool = False,
    sleeper: Sleeper | None = None,
    limits: FetchLimits | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Online]:
    """
    Yield the network under docs/protocols/fetching.md.

    `cache` is the folder for endorsements (`Paths.endorsements`), None for no cache; `fresh` leaves
    it unread. `tls` replaces the system's certificates. Raises `ConfigurationError` for a
    base URL or a proxy that is none.
    """
    urls, bounds = services or VendorServices(), limits or FetchLimits()
    patient = limits or service_limits()
    async with open_http(limits=bounds, tls=tls) as http:
        fetcher = EndorsementFetcher(
            http,
            clock=clock,
            entropy=entropy,
            sleeper=sleeper,
            cache=NoCache() if cache is None else DiskCache(cache),
            limits=bounds,
            fresh=fresh,
        )
        nras = NrasService(fetcher, base=urls.nras)
        yield Online(
            ServiceHttp(http, clock=clock, entropy=entropy, sleeper=sleeper, limits=patient),
            EndorsementSources(
                tdx=IntelPcs(fetcher, pccs=urls.pccs, base=urls.pcs, root_crl=urls.root_crl),
                snp=AmdKds(fetcher, base=urls.kds),
                nvidia=NvidiaServices(fetcher, rim=urls.rim, ocsp=urls.ocsp),
                nras=nras,
            ),
            nras,
        )
