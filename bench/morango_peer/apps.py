"""The peer's application."""

from django.apps import AppConfig
from django.db.backends.signals import connection_created


def _like_kolibri(connection, **_arguments):
    """Set SQLite as Kolibri does: write-ahead log, no wait for the disk at each commit."""
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")


class PeerConfig(AppConfig):
    """The models that are synced, and how their database is opened."""

    name = "morango_peer"
    label = "peer"

    def ready(self):
        """Have every connection opened alike."""
        connection_created.connect(_like_kolibri)
