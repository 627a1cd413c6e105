"""The machine that goes off between any two steps that change the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from shala_central import commit as commit_module
from shala_central import mending as mending_module
from shala_central import publish as publish_module

Step = tuple[object, str]  # what is called: its owner, and its name there
STEPS: tuple[Step, ...] = (
    (Path, "rename"),
    (Path, "replace"),
    (Path, "unlink"),
    (os, "fsync"),
    (os, "link"),
    (publish_module, "exchange"),
    (commit_module, "remove_tree"),
    (mending_module, "remove_tree"),
)


class Crash(BaseException):
    """The machine went off here."""


def steps(monkeypatch: pytest.MonkeyPatch, crash_at: int, *more: Step) -> list[str]:
    """Make the machine go off at the n-th step that changes the disk; return the steps so far."""
    done: list[str] = []

    def watched(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def step(*arguments: object, **options: object) -> object:
            done.append(name)
            if len(done) == crash_at:
                raise Crash
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, step)

    for owner, name in (*STEPS, *more):
        watched(owner, name)
    return done
