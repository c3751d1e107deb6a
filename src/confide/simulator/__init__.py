"""The ports made fake but byte-exact, under roots that say SIMULATED."""
