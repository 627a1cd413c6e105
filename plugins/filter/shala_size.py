"""Ansible filter plugin: bytes in words, so that a playbook and `shala` say the same."""

# ruff: noqa: E402 - Ansible's documentation stands before the imports
from __future__ import annotations

DOCUMENTATION = r"""
name: shala_size
short_description: Bytes in words, in powers of ten
description: As C(shala) writes them, e.g. C(1.4 kB), C(17 MB).
positional: _input
options:
  _input:
    description: A number of bytes.
    type: int
    required: true
"""

EXAMPLES = r"""
# 17 MB
# {{ 17000000 | shala_size }}
"""

RETURN = r"""
_value:
  description: The words.
  type: str
"""

from ansible.errors import AnsibleFilterError

try:
    from shala_central.report import size
except ImportError:
    size = None


def shala_size(number):
    """Return bytes in words."""
    if size is None:
        raise AnsibleFilterError(
            "shala_size needs shala-central in the Python that runs Ansible"
            " (make venv, or: pip install ./agent ./central)"
        )
    return size(int(number))


class FilterModule:
    """The filter."""

    def filters(self):
        """Return it by its name."""
        return {"shala_size": shala_size}
