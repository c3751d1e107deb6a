"""What an enclave says it executed: transcript, issue, verify, chain."""
