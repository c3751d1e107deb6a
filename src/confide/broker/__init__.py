"""Attested release of secrets: what owners signed, what is stored, what a run may have."""
