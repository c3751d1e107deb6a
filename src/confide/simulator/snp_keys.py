"""The RSA keys of every SIMULATED AMD hierarchy: constants, because they protect nothing.

A key of 4096 bits cannot be derived from a seed in the time a test has. These three were drawn once
and are public: whoever reads this can sign as any simulated AMD authority. They separate nothing
but simulated from genuine; two seeds differ in the serial numbers of their roots.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from confide.crypto.rsa import RsaSigningKey

__all__ = ["simulated_rsa_key"]

# SIMULATED: label to the two primes.
_PRIMES: Final = {
    "root": (
        int(
            "f578282f1549001ad3c1e2f75096eb16238b1f5f6f5b651bf5cd0333eda90567b0ecff0d6aa5eb64"
            "e600ca07bfb6e1369050db24d93de8e4be54915e079a7bb84943a0ac193b4f32eff30c5f5660fbcc"
            "e4bde8a372ad6d107f21472d0da202ce0d866b473275b4d8820d87c31f23e6ddbbbd08e5ba5820e9"
            "a6873431f0b36a73bf2cb9a4428593f4bcde086ea52d10b41050b9ffb4644b496a660aa747dcbf3d"
            "c0f77d38f816bec9d8e98ac901510ad6b16278b98ddecec7c5b8c4da4c05f0c78c97130d25b9ca44"
            "441633164c3af2347ff722847f37ccd1889714df70f78e8cced7512562f7121b62b568a80d1bcee6"
            "cef72d3a9e5d041cf2b0495e9bf36a87",
            16,
        ),
        int(
            "dff95469ffd6324a52a6c49be293db876325f89a9e08356bd117fb08c7a7bda26126b32bd3624696"
            "6eb76d72b89c4b1db276facc571d1521e284ccf0ee02787b86e95ec9c03a1e4f4590539bae3c72f3"
            "f7700b3e7c3121146a2276f21943114f123f215955f1bce376081f1c3ac4cf2b0c071cb34809b332"
            "d13b76149d6d3817b2de98b6ce733743973252258b9ddde852451375e9d2796a6d785afe0bb7aa73"
            "cf7446b3ebe45b33f7507d9101c29cd58db466a8b26ebc145f2ca25db1238543f82c707455817c8d"
            "80562548533f204731008942175a274abb7d1cc81bbcedda3b898caf1403e968154f1a163d385a30"
            "4764a37ecf346847695163599a523afb",
            16,
        ),
    ),
    "authority": (
        int(
            "ffc6ce9393af4b624bd7e6d522b3d215438be3a822079db9977a7b5337c3653771b196da8f64616e"
            "7be0a26f877993ca954bd57da751a15dbac06586e88236d1e923598fe5ed9cd40e1a6495796d7591"
            "19952753b8ea38acc0de3584e4ec7601ac0ed89f1eeaf16ea6e268cd8eb51040a853d6b37f045b23"
            "5316e802fbfd280c71c2777147457f7ab34e3acea2ad7c491522f31812d547a289439e7ebf1cbb72"
            "0088f7fefe64647efdc613e3bb39e7c4321d648811d8858d4bb7318799593a2718b48b3b41bd3c10"
            "a0c576c9a4f5dee99f2ec9e62f9bb894b0c0cc30cf63ecb376d713fbb7efdab39a89c2ea23ccaf91"
            "cae9d8fec9d0bd96c981634a5ea9757d",
            16,
        ),
        int(
            "f17d766ae90ab10ead2fe0bc6c2448d8e405ff5adaa7875614f7c17333d966ab0967232d6ad070f3"
            "c54631ad23113866fdcc061665ddb93ede64b188a0802d326c5ab2a23aceaf4593518f1f78cb0150"
            "862a0ae5a449155ee1d83abb934cf79886a3ae9deaef6ba1e83d9d741cb87459bb9b4c52efa3bcb4"
            "098e098b9956458b562b46c7f6304c9b1a16ad9c4c50e041d0a159ceaf2f8df3d0c79717ba535f45"
            "c3830e4f9364adc0afe8f3624f5992d28246e1efcb2a527b310906fecb9fe44f26e2b1099ce26ba1"
            "b364ed1fd9e6da7c1b33cfbb14df5b38fd9a5b877804e20acb12b9e40486589bfa2cbd913be65965"
            "09698cf6c40c2530d88462de669db581",
            16,
        ),
    ),
    "foreign": (
        int(
            "e55d16ed4661c29fb1d324063cd56135beec1817abe806f221dd94a2cd20a6a515e003b4c5c3a1a2"
            "0ce7ef003b1ca22a656a5814e2245ab7e4463e854179e004035f075cd673a9e7e1ad2cf87be38797"
            "d0b0c0998bb498a52a22d8925a893fc4d5ac07de6b7c126ea135581299b3069e99ac83af751a6560"
            "851fdf07222ab446cc2477c1c65263d90177b0f4ca9f0b15a09cf500fbf9b8b6f387e2fcf7ce392c"
            "120f17bb59a187b597d730d1910d6eda6c0b654651547ba63f92224df1935f138843d5349c4c61f4"
            "002881f1a1ed95c114084fe6a0a9105a2e7ea376ee5023e6684bc691d5e98a90d812c7c9c3031da4"
            "2167e36892843591af6a594553e38457",
            16,
        ),
        int(
            "d86f5f3bcbcca9d921c8330e56d14dbfa73ade6edfa4c23e321dcb182a139030aaf9dd899daca797"
            "df1e55862b1300933025639535c8d6a43cdb57ca068e71aaa6dc225cf9510710035ad34ca7de8b39"
            "f1fa4ae82e4b625a47cbc76083c1d2dab7797ab54c97e3869527c1a984bf4daadd3ace6144c57e23"
            "3c3e246e8b7fed1c037dc9b8ac830a1999fad5c5d1eed1e5c4eea8c441e756ccf12572ff9136754c"
            "4531e6fb585eee9bcb13106feef573ef8f1ffdd31bdb3c8c58bfa44053ec13a072f7bef3ce2a4689"
            "f322cd0a9ced1b5d3e361684a71088fef5f0b600622dd9be13e2c0a7569306425f31f145e74a27f9"
            "9465c0aec45185c80495b0e2fd3ed5cf",
            16,
        ),
    ),
}


@lru_cache(maxsize=8)
def simulated_rsa_key(label: str) -> RsaSigningKey:
    """Return the SIMULATED key called `label`: `root`, `authority` or `foreign`."""
    return RsaSigningKey.of_primes(*_PRIMES[label])
