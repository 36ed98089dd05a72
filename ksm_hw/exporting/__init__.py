"""Tasks as plain networks for other engines."""
