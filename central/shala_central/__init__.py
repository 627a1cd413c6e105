"""Everything of shala that runs at the centre: schools list, probe, pull, archive, command line."""

__version__ = "0.1.0"
