"""The Verifier of RFC 9334, pure: evidence, policy, roots and time in; a verdict out."""
