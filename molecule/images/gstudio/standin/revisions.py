"""RCS archives (`,v` files), byte for byte as `ci` writes them for text kept with strict locking."""

from __future__ import annotations

import difflib
import re
import time

AUTHOR = "root"


def _quoted(text: str) -> str:
    return "@" + text.replace("@", "@@") + "@"


def _delta_head(revision: str, when: int, following: str) -> str:
    stamp = time.strftime("%Y.%m.%d.%H.%M.%S", time.gmtime(when))
    return f"{revision}\ndate\t{stamp};\tauthor {AUTHOR};\tstate Exp;\nbranches;\nnext\t{following};\n"


def _reverse_delta(new: str, old: str) -> str:
    """Return the RCS edit script that makes the old text from the new one."""
    new_lines, old_lines = new.splitlines(keepends=True), old.splitlines(keepends=True)
    script = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(
        None, new_lines, old_lines, autojunk=False
    ).get_opcodes():
        if tag in ("replace", "delete"):
            script.append(f"d{i1 + 1} {i2 - i1}\n")
        if tag in ("replace", "insert"):
            script.append(f"a{i2} {j2 - j1}\n" + "".join(old_lines[j1:j2]))
    return "".join(script)


def first_revision(text: str, when: int, log: str, description: str) -> str:
    """Return the archive that holds `text` as revision 1.1."""
    return (
        "head\t1.1;\naccess;\nsymbols;\nlocks; strict;\ncomment\t@# @;\n\n\n"
        + _delta_head("1.1", when, "")
        + f"\n\ndesc\n{_quoted(description + chr(10))}\n"
        + f"\n\n1.1\nlog\n{_quoted(log + chr(10))}\ntext\n{_quoted(text)}\n"
    )


def next_revision(archive: str, old: str, new: str, when: int, log: str) -> str:
    """Given the archive whose head holds `old`, return it with `new` as the next revision.

    Raises ValueError if the head of the archive is not `old`.
    """
    match = re.match(r"head\t1\.(\d+);", archive)
    whole = f"\ntext\n{_quoted(old)}\n"
    if not match or whole not in archive:
        raise ValueError("the archive's head is another text")
    head, following = f"1.{match[1]}", f"1.{int(match[1]) + 1}"
    archive = archive.replace(match[0], f"head\t{following};", 1)
    archive = archive.replace(f"\n{head}\ndate", f"\n{_delta_head(following, when, head)}\n{head}\ndate", 1)
    archive = archive.replace(whole, f"\ntext\n{_quoted(_reverse_delta(new, old))}\n", 1)
    block = f"\n\n{following}\nlog\n{_quoted(log + chr(10))}\ntext\n{_quoted(new)}\n"
    return archive.replace(f"\n\n{head}\nlog\n", f"{block}\n\n{head}\nlog\n", 1)
