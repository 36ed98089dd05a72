"""The one exception for bad input."""


class UserError(Exception):
    """Bad input: the message says what was expected, what was found and what to do.

    The command line prints the message without a traceback and exits with 2.
    """
