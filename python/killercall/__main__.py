"""`python -m killercall` prints what a bug report needs."""

from __future__ import annotations


def main() -> None:
    """Prints it, or how to be used."""
    import argparse

    from killercall._versions import show_versions

    argparse.ArgumentParser(
        prog="python -m killercall", description="Prints what a bug report about killercall needs."
    ).parse_args()
    show_versions()


if __name__ == "__main__":
    main()
