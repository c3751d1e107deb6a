"""Evidence of other services: one reader per format, from their documents to `Evidence`."""
