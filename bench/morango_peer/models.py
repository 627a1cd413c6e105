"""What the peer syncs: the visits of bench/visits.py, and the students that they belong to."""

import os

from django.db import models
from morango.models.core import SyncableModel

PROFILE = "bench"


class _OfTheZone(SyncableModel):
    morango_profile = PROFILE

    class Meta:
        abstract = True

    def calculate_partition(self):
        """All records are in one partition: the zone."""
        return os.environ["PEER_ZONE"]

    def calculate_source_id(self):
        """Make the key at random, unless whoever makes the record has set _morango_source_id."""


class Student(_OfTheZone):
    """Whom a visit belongs to."""

    morango_model_name = "student"
    name = models.CharField(max_length=64)


class Visit(_OfTheZone):
    """One visit; fields as in bench/visits.py."""

    morango_model_name = "visit"
    user = models.ForeignKey(Student, on_delete=models.CASCADE)
    learner = models.CharField(max_length=64)
    content_id = models.CharField(max_length=32)
    kind = models.CharField(max_length=16)
    score = models.FloatField()
    payload = models.TextField()
