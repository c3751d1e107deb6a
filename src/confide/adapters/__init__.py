"""The ports made real: files, network, containers, clock, entropy."""
