"""The one exception whose message is meant for the user's eyes."""


class MoldiffError(ValueError):
    """Something the user gave cannot be used.

    The message is a single line that names what came and what was expected; the command line prints
    it without a stack trace and exits with code 2.
    """
