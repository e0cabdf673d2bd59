"""The merger: one process a domain. It sees digests and never memory; see CONTRIBUTING.md."""


def main(domain: str, linger: float) -> int:
    """Serves `domain` until nobody is left for `linger` seconds; returns the exit status.

    0 also if another merger serves the domain already.
    """
    from udedup.merger.process import serve

    return serve(domain, linger)
