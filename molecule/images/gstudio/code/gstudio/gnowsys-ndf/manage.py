#!/usr/bin/env python
"""The stand-in of gStudio's manage.py."""

from standin.management import run

if __name__ == "__main__":
    run()
