"""Training without torch: dataset commitment, plan, step chain, record, replay verdict."""
