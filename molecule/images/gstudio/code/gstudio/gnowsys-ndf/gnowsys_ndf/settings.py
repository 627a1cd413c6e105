"""Paths and names that gStudio takes from its settings."""

GSTUDIO_LOGS_DIR_PATH = "/data/gstudio-logs"
MEDIA_ROOT = "/data/media/"
RCS_REPO_DIR = "/data/rcs-repo"
RCS_REPO_DIR_HASH_LEVEL = 3
GSTUDIO_PRIMARY_COURSE_LANGUAGE = "en"

try:  # noqa: SIM105
    from gnowsys_ndf.local_settings import *  # noqa: F403
except ImportError:
    pass
