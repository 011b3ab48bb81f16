"""Bad days on purpose: load, faults and abuse, and what the service promised meanwhile. See docs/reliability.md."""
