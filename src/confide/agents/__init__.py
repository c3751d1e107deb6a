"""Agent folder, image digest, egress policy, run state machine. Pure."""
