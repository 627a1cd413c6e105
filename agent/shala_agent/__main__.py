"""`python -m shala_agent` is `shala-agent`."""

from __future__ import annotations

import gc


def main() -> None:
    """Load the command line and run it."""
    gc.disable()  # what is loaded stays: looking through it as it grows takes a twentieth of a start
    from shala_agent import cli

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
