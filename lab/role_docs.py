"""Keep each role's README table of variables equal to its meta/argument_specs.yml, and its defaults to both.

`python lab/role_docs.py` writes the tables; with --check it writes nothing and exits 1 where one differs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

BEGIN, END = "<!-- BEGIN VARIABLES -->", "<!-- END VARIABLES -->"
ROLES = Path(__file__).resolve().parent.parent / "roles"


def table(options: dict[str, dict[str, Any]]) -> str:
    """Return the Markdown table for the options of one argument_specs entry point."""
    rows = ["| variable | type | default | what it does |", "|---|---|---|---|"]
    for name, option in options.items():
        description = option["description"]
        text = " ".join(description) if isinstance(description, list) else str(description)
        default = "**required**" if option.get("required") else f"`{option.get('default', '')!s}`"
        rows.append(
            f"| `{name}` | {option.get('type', 'str')} | {default} | {' '.join(text.split())} |".replace(
                "``", ""
            )
        )
    return "\n".join(rows)


def problems(role: Path, *, write: bool) -> list[str]:
    """Return what is wrong with one role's documentation; with `write` mend the README first."""
    options = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
    defaults = yaml.safe_load((role / "defaults/main.yml").read_text()) or {}
    readme = role / "README.md"
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        return [f"{readme}: has no {BEGIN} ... {END} markers"]
    head, rest = text.split(BEGIN, 1)
    wanted = f"{head}{BEGIN}\n{table(options)}\n{END}{rest.split(END, 1)[1]}"
    if write:
        readme.write_text(wanted)
    found = []
    if readme.read_text() != wanted:
        found.append(
            f"{readme}: its table differs from meta/argument_specs.yml (run: python lab/role_docs.py)"
        )
    found += [
        f"{role.name}: default {name} is not in argument_specs" for name in defaults if name not in options
    ]
    found += [
        f"{role.name}: {name} has default {option['default']!r} in argument_specs and {defaults.get(name)!r} in defaults"
        for name, option in options.items()
        if "default" in option
        and "{{" not in str(defaults.get(name))
        and option["default"] != defaults.get(name)
    ]
    return found


def main() -> int:
    """Check or write every role; return the exit code."""
    write = "--check" not in sys.argv[1:]
    found = [problem for role in sorted(ROLES.iterdir()) for problem in problems(role, write=write)]
    print("\n".join(found) if found else "role documentation: equal to the specs")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
