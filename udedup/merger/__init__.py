"""The merger: one process a domain. It sees digests and never memory; see DESIGN in CONTRIBUTING.md."""


def main(domain: str, linger: float) -> int:
    """Serves `domain` until nobody is left for `linger` seconds. Exit status; 0 if another one serves already."""
    from udedup.merger.process import serve

    return serve(domain, linger)
