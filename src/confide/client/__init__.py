"""The relying party."""
