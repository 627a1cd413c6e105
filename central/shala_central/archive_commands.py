"""The command line of the archive: `shala archive ...`."""

from __future__ import annotations

import click

from shala_central.content_commands import archive_encrypt, archive_objects, archive_prune
from shala_central.integrity_commands import archive_repair, archive_scrub, archive_verify
from shala_central.options import Group
from shala_central.quarantine_commands import quarantine_group
from shala_central.show_commands import archive_provenance, archive_show, archive_status, archive_tree
from shala_central.version_commands import (
    archive_accept,
    archive_checkout,
    archive_diff,
    archive_export,
    archive_log,
    archive_restore,
)


@click.group("archive", cls=Group)
def archive_group() -> None:
    """Look at the archive of all collections.

    \b
    Example:
      shala archive tree 2026/mz
    """


# In the order in which a newcomer meets them.
for command in (
    archive_tree,
    archive_show,
    archive_verify,
    archive_scrub,
    archive_repair,
    archive_status,
    archive_log,
    archive_diff,
    archive_checkout,
    archive_restore,
    archive_accept,
    archive_provenance,
    archive_export,
    quarantine_group,
    archive_prune,
    archive_encrypt,
    archive_objects,
):
    archive_group.add_command(command)
