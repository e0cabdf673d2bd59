"""The one exception class of udedup."""


class UdedupError(Exception):
    """Something a user can act on. Its text is one line: the cause, then `;` and the remedy."""


class WrongUsage(UdedupError):
    """A name or a value that is wrong wherever it is given: the command's exit status is 2, not 1."""
