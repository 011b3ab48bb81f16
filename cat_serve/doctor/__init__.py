"""What this machine and these settings are good for: every check looks at the real thing and says what to do."""
