"""`python -m shala_central` is `shala`."""

from __future__ import annotations

import gc
from typing import NoReturn


def main() -> NoReturn:
    """Load the command line and run it."""
    gc.disable()  # what is loaded stays: looking through it as it grows takes a twentieth of a start
    from shala_central import cli

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
