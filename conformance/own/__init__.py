"""Where our own vectors come from: one module per stage, over the simulators. All is SIMULATED."""
