"""Migrations: how the centre's database of zones is made, and what each release has changed in it."""
