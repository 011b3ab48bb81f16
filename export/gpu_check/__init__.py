"""What a user with a GPU runs: engines, parity, latency, memory and Triton in one report."""
