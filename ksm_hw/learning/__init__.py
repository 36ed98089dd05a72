"""Learning masks and heads over a frozen backbone."""
