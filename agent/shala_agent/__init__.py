"""shala-agent: everything that runs on a school server.

It never needs a network and never trusts an exit code.
"""

__version__ = "0.1.0"
