"""One module per stage: from a case of an index file to a verdict of the verifier under test."""
