"""Training that can be proven, as far as it is arithmetic over bytes: plan, order, chain, seeds."""
