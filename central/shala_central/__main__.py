"""`python -m shala_central` is `shala`."""

from shala_central.cli import main

main()
