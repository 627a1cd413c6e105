"""The stand-in's qbank-lite does not serve: only its databases and its files are there."""
