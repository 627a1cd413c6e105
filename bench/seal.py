"""Seal a school as the agent's chain does, without its container: python bench/seal.py AGENT_TOML

The one thing left out is the docker exec (the git log, the image's name): no peer does that. Everything else
is the production code: walk, read, check, hash, mirror, manifest, changes.
"""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path

from shala_agent.collect import collect
from shala_agent.config import read_config
from shala_agent.container import Container, ContainerState, ContainerUnavailable
from shala_agent.ledger import Ledger
from shala_agent.reach import Reach


class NoContainer(Container):
    """A container that is switched off."""

    def state(self) -> ContainerState:
        """Say so."""
        return ContainerState(self.name, "exited")

    def run(self, *_arguments: object, **_options: object) -> object:  # type: ignore[override]
        """Say so."""
        raise ContainerUnavailable("container is exited")

    def fetch(self, path: str, *_arguments: object, **_options: object) -> None:
        """Find nothing."""
        raise FileNotFoundError(path)


def main() -> None:
    """Collect and seal once."""
    config = read_config(Path(sys.argv[1]))
    state = Path(config.paths.state)
    state.mkdir(parents=True, exist_ok=True)
    container = NoContainer(config.container.name, state / "locks")
    with closing(Ledger(state / "ledger.sqlite")) as ledger:
        done = collect(config, container, Reach(config.paths, container, state / "fetched"), ledger)
    print(json.dumps({"sealed": done.sealed, "sequence": done.head.sequence if done.head else 0}))


if __name__ == "__main__":
    main()
