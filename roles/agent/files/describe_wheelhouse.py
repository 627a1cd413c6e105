"""Print what a wheelhouse holds of one package, as JSON with version and sha256. Runs on the controller."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
from pathlib import Path


def describe(wheelhouse: Path, package: str) -> dict[str, str]:
    """Given a tar of wheels and the name of a package, return its version there and the digest of the tar."""
    if not wheelhouse.is_file():
        raise SystemExit(f"{wheelhouse} does not exist (make wheelhouse packs it)")
    with wheelhouse.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    wheel = re.compile(rf"(?:\./)?{re.escape(package.replace('-', '_'))}-([0-9][^-]*)-[^/]+\.whl")
    with tarfile.open(wheelhouse) as tar:
        versions = [match[1] for name in tar.getnames() if (match := wheel.fullmatch(name))]
    if len(versions) != 1:
        raise SystemExit(
            f"{wheelhouse} holds {len(versions)} wheels of {package}, not one (make wheelhouse packs it)"
        )
    return {"version": versions[0], "sha256": digest}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe(Path(sys.argv[1]), sys.argv[2])) + "\n")
