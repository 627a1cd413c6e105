"""Everything of shala that runs at the centre: schools list, probe, pull, archive, and the command line over them."""

__version__ = "0.1.0"
