"""The one exception for bad input, and the hint that its messages give behind a name that is not known."""

from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the message says what was expected, what was found and what to do.

    The command line prints the message without a traceback and exits with 2.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'NEAR'?`, with a blank in front, where one of the known names is near; else nothing."""
    import difflib  # Only where a command ends anyway.

    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""
