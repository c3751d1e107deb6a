"""Bytes to frozen values and back. No crypto, no policy, no I/O; every input is hostile."""
