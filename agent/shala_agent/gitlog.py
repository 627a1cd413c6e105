"""The git log: in which state the platform's code is, by the four commands of the hierarchy for each
repository.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shala_agent import durable
from shala_agent.ledger import now
from shala_agent.outcome import Result, failed, judged
from shala_agent.reach import CODE, GNOWSYS

if TYPE_CHECKING:
    from shala_agent.container import Container

REPOSITORIES = (CODE, f"{CODE}/gstudio", f"{GNOWSYS}/qbank-lite")
COMMANDS = (("status",), ("diff",), ("log", "-5"), ("branch",))
MAX_OUTPUT = 100_000  # bytes of one command: a diff may be endless
TIMEOUT = 120  # seconds for all commands of one repository


def write_git_log(container: Container, target: Path) -> Result:
    """Write the log to `target`, unless it says what it said the last time. Raises ContainerUnavailable."""
    parts: list[str] = []
    findings: list[str] = []
    for repository in REPOSITORIES:
        text = _one_repository(container, repository)
        if text.count("## git ") < len(COMMANDS) and "fatal: " not in text:
            text += "fatal: the commands said nothing\n"
        if "\nfatal: " in f"\n{text}":
            findings.append(f"{repository}: {text[text.index('fatal: ') :].splitlines()[0]}")
        parts.append(text)
    if len(findings) == len(REPOSITORIES):
        return failed(*findings)
    body = "\n".join(parts)
    before = target.read_text(encoding="utf-8", errors="replace") if target.exists() else ""
    if before.partition("\n\n")[2] != body:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        durable.write(target, f"Date : {now()}\n\n{body}".encode("utf-8", "replace"))
    return judged(findings)


def _one_repository(container: Container, repository: str) -> str:
    """Return what the four commands say in a repository."""
    script = "".join(
        f"echo; echo '## git {' '.join(command)}'; "
        f"git --no-pager -c safe.directory='*' -c color.ui=false {' '.join(command)} 2>&1"
        f" | head -c {MAX_OUTPUT}; "
        for command in COMMANDS
    )
    ran = container.run(
        ["sh", "-c", f"cd {repository} || {{ echo 'fatal: there is no such folder'; exit 1; }}; {script}"],
        timeout_seconds=TIMEOUT,
        environment={"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
    )
    late = "fatal: the commands took too long\n" if ran.timed_out else ""
    return f"# {repository}\n{ran.stdout}{late}"
