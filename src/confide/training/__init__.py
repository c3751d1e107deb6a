"""Training without a machine: data sets, plans, chains, records. Pure."""
