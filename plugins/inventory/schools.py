"""Ansible inventory plugin: the list of schools as hosts and groups, as shala_central.schools reads it."""

# ruff: noqa: E402 - Ansible's documentation stands before the imports
from __future__ import annotations

DOCUMENTATION = r"""
name: schools
short_description: School servers from the list of schools
description:
  - Reads a list of schools (CSV) and yields one host per school server, named C(<school code>-<server id>).
  - The file names the plugin (C(plugin) is C(schools)) and ends in C(schools.yml) or C(schools.yaml).
  - A bare list (C(*.csv)) given as inventory is read with the defaults; beside a C(schools.yml) it is left to
    that file.
  - "Columns: C(School Name), C(Full CLIx School Code), C(Server id) and, where there are such, C(zone),
    C(address), C(port) (of the tunnel), C(ring); in any order, separated by C(;), C(,) or tabs."
  - "Host variables: server_name, state, school_code, server_id, school_name, zone, ring; ansible_host and
    ansible_port where the list has them."
  - "Groups: schools, state_<state>, zone_<zone>, ring_<number>."
  - Whatever is wrong in the list is an error or a warning that names file, line, field and value.
requirements:
  - shala-central in the Python that runs Ansible
options:
  plugin:
    description: Says that the file is for this plugin; every C(schools.yml) needs it.
    type: str
    choices: [schools]
  path:
    description: The list; relative to the file that names it.
    type: str
    default: schools.csv
  states:
    description: The state codes there are. A new state needs nothing but its code here.
    type: list
    elements: str
    default: [mz, rj, ct, tg]
  aliases:
    description: Other spellings of a state, and the state that is meant.
    type: dict
    default: {cg: ct, ts: tg}
  duplicate_ids:
    description:
      - What to do when a server id is used twice - refuse the list, take the first row, or leave all out.
    type: str
    choices: [error, first, skip]
    default: error
  invalid:
    description:
      - What to do with a row that cannot be used - refuse the list, or leave the row out with a warning.
    type: str
    choices: [error, skip]
    default: error
  codes:
    description: School codes by server id, for schools whose code the list does not have (C(NA) or empty).
    type: dict
    default: {}
  rings:
    description:
      - Per cent of the servers in each ring of a roll-out; together 100.
      - A server without a C(ring) in the list gets one by the hash of its name, so always the same.
    type: dict
    default: {1: 5, 2: 25, 3: 70}
"""

EXAMPLES = r"""
# inventories/example/schools.yml: everything at its default
plugin: schools
path: schools.csv

# a fifth state, one school without a code, half of the servers in the first ring, unusable rows left out
# plugin: schools
# path: schools.csv
# states: [mz, rj, ct, tg, ka]
# codes: {tg39: "4160139"}
# rings: {1: 50, 2: 50}
# invalid: skip
"""

from pathlib import Path

import yaml
from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin

try:
    from shala_central.schools import Rules, read_schools
except ImportError:
    Rules = None

CONFIG_ENDINGS = ("schools.yml", "schools.yaml")
GROUP = "schools"
MAX_SHOWN = 10  # errors named in one go


class InventoryModule(BaseInventoryPlugin):
    """Hosts, groups and variables from the list of schools."""

    NAME = "schools"

    def verify_file(self, path):
        """Return whether the file is for this plugin."""
        return super().verify_file(path) and path.endswith((*CONFIG_ENDINGS, ".csv"))

    def parse(self, inventory, loader, path, cache=True):
        """Read the list that the file names and add what is in it to the inventory."""
        super().parse(inventory, loader, path, cache)
        config = Path(path)
        if config.suffix == ".csv":
            beside = [config.parent / name for name in CONFIG_ENDINGS if (config.parent / name).exists()]
            if beside:
                named = str((loader.load_from_file(str(beside[0])) or {}).get("path", "schools.csv"))
                if named != config.name:
                    self.display.warning(f"{config} is not read: {beside[0]} names {named} (change its path)")
                return
            schools = config
            self.set_options()
        else:
            known = self._read_config_data(path)
            options = yaml.safe_load(DOCUMENTATION)["options"]
            if unknown := sorted(set(known) - set(options)):
                raise AnsibleParserError(
                    f"{path}: '{unknown[0]}' is not an option (there are: {', '.join(sorted(options))})"
                )
            schools = config.parent / str(self.get_option("path"))
        if Rules is None:
            raise AnsibleParserError(
                "the schools inventory needs shala-central in the Python that runs Ansible"
                " (make venv, or: pip install ./agent ./central)"
            )
        self._add(self._read(schools))

    def _read(self, schools):
        """Return the servers of a list; its warnings are shown, its errors raised in one line."""
        try:
            read = read_schools(schools, self._rules())
        except OSError as error:
            raise AnsibleParserError(f"{schools}: {error.strerror}") from None
        except ValueError as error:
            raise AnsibleParserError(f"schools inventory: {error}") from None
        for finding in read.findings:
            if finding.severity == "warning":
                self.display.warning(str(finding))
        if errors := [str(finding) for finding in read.errors]:
            hidden = len(errors) - MAX_SHOWN
            more = f"; and {hidden} more (shala schools check {schools})" if hidden > 0 else ""
            raise AnsibleParserError("; ".join(errors[:MAX_SHOWN]) + more)
        return read.schools

    def _rules(self):
        """Return the options as rules, in plain types: Ansible tags its own with where they came from."""

        def plain(name):
            return {str(key): str(value) for key, value in (self.get_option(name) or {}).items()}

        try:
            rings = {int(ring): int(share) for ring, share in plain("rings").items()}
        except ValueError:
            raise AnsibleParserError(
                "schools inventory: rings: ring and per cent must be whole numbers"
            ) from None
        return Rules(
            states=tuple(str(state) for state in self.get_option("states")),
            aliases=plain("aliases"),
            duplicate_ids=str(self.get_option("duplicate_ids")),
            invalid=str(self.get_option("invalid")),
            codes=plain("codes"),
            rings=rings,
        )

    def _add(self, schools):
        inventory = self.inventory
        inventory.add_group(GROUP)
        for group in sorted({group for school in schools for group in school.groups}):
            inventory.add_group(group)
        for school in schools:
            host = inventory.add_host(school.server_name, group=GROUP)
            for group in school.groups:
                inventory.add_child(group, host)
            for name in ("server_name", "state", "school_code", "server_id", "school_name", "zone", "ring"):
                inventory.set_variable(host, name, getattr(school, name))
            if school.address:
                inventory.set_variable(host, "ansible_host", school.address)
            if school.port is not None:
                inventory.set_variable(host, "ansible_port", school.port)
