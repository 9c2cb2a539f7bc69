"""The one exception whose message is meant for the user's eyes."""


class MoldiffError(ValueError):
    """Something the user gave cannot be used.

    The message is a single line that names what came and what was expected; the command line prints
    it without a stack trace and exits with code 2.
    """


def check_at_least(name: str, value: int | None, low: int) -> None:
    """Refuse a number below `low`; None is none and passes.

    Raises:
        MoldiffError: with the name, what came and what was expected.
    """
    if value is not None and value < low:
        raise MoldiffError(f"{name}: got {value}, expected a whole number of at least {low}")
