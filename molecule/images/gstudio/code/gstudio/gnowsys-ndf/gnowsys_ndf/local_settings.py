# Settings of this installation.
DEBUG = False
ALLOWED_HOSTS = ["*"]
DATABASES = {
    "default": {"ENGINE": "django.db.backends.postgresql_psycopg2", "NAME": "gstudio_psql", "USER": "glab"},
    "mongodb": {"ENGINE": "django_mongokit.mongodb", "NAME": "gstudio-mongodb"},
}
GSTUDIO_PRIMARY_COURSE_LANGUAGE = "en"

try:  # noqa: SIM105
    from .server_settings import *  # noqa: F403
except:  # noqa: E722  a syntax error in there goes unnoticed, as on the real servers
    pass
