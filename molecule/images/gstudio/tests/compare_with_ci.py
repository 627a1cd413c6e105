"""Check in texts with the real `ci` and with our own writer; exit 1 unless the archives are equal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

try:
    from standin import revisions
except ImportError:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from standin import revisions

TEXTS = (
    '{\n  "a": 1,\n  "b": 2,\n  "c@x": 3\n}',
    '{\n  "a": 1,\n  "b": 5,\n  "c@x": 3,\n  "d": 4\n}',
    "new\n",
)
TIMES = (
    ("2018-08-14 06:41:00Z", 1534228860),
    ("2018-08-15 06:41:00Z", 1534315260),
    ("2018-08-16 06:41:00Z", 1534401660),
)


def compare(folder: Path) -> bool:
    """Return whether both archives are the same after each check-in."""
    file, archive, previous = folder / "node.json", "", ""
    for number, (text, (stamp, when)) in enumerate(zip(TEXTS, TIMES, strict=True)):
        file.unlink(missing_ok=True)
        file.write_text(text)
        log = f"change {number}"
        if number:
            subprocess.run(["rcs", "-q", "-l", str(file)], check=True, cwd=folder)
        command = ["ci", "-q", "-u", f"-d{stamp}", "-t-node", f"-m{log}", "-wroot", str(file)]
        subprocess.run(command, check=True, cwd=folder)
        if number:
            archive = revisions.next_revision(archive, previous, text, when, log)
        else:
            archive = revisions.first_revision(text, when, log, "node")
        previous = text
        if (folder / "node.json,v").read_text() != archive:
            print((folder / "node.json,v").read_text(), archive, sep="\n----- ci above, ours below -----\n")
            return False
    return True


if __name__ == "__main__":
    sys.exit(0 if compare(Path(sys.argv[1])) else 1)
