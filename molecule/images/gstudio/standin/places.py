"""Where things lie in the container."""

from pathlib import Path

DATA = Path("/data")
PROJECT = Path("/home/docker/code/gstudio/gnowsys-ndf")
SETTINGS = PROJECT / "gnowsys_ndf/server_settings.py"
DATASTORE = PROJECT / "qbank-lite/webapps/CLIx/datastore"
STATE = DATA / "db/.standin"  # the stand-in's own: what was generated, and the real store of port 27017
CLUSTER = Path("/var/lib/postgresql/15/main")  # on no volume, as on the real servers
POSTGRES = Path("/usr/lib/postgresql/15/bin")
