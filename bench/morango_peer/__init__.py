"""A small Django project around Morango, to measure it with: run by its own Python in build/peers/morango."""
