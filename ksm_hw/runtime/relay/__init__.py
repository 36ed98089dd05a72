"""Running what was compiled through Relay, in an environment and processes of its own."""
