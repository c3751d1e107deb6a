"""The attested sealed channel, sans-IO: keyset, chunked OHTTP, padding, replay window."""
