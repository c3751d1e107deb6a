"""What a node tells about its work without its content: docs/protocols/tenancy.md §6, §7. Pure."""
