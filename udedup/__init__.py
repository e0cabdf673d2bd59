"""udedup: merges identical memory pages of cooperating processes, without root."""

__version__ = "0.1.0"
