"""Who may call a model node, how much, and what is counted: docs/protocols/tenancy.md. Pure."""
