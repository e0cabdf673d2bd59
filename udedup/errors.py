"""The one exception class of udedup."""


class UdedupError(Exception):
    """Something a user can act on. Its text is one line: the cause, then `;` and the remedy."""
