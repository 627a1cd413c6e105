"""Make a school's data, let a day pass, or run the stand-in's services (see `standin COMMAND --help`)."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import day, documents, live, people, serve, sql, tree
from .places import DATA, DATASTORE
from .school import Sizes, school_of
from .serve import say


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(prog="standin", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    generate = commands.add_parser("generate", help="make the data of day 0 where there are none")
    _places(generate)
    seed = os.environ.get("GSTUDIO_STANDIN_SEED") or None
    generate.add_argument("--seed", default=seed, help="server id, e.g. mz17")
    generate.add_argument("--school-code", default=None)
    generate.add_argument("--school-name", default=None)
    scale = float(os.environ.get("GSTUDIO_STANDIN_SCALE") or 0.01)
    generate.add_argument("--scale", type=float, default=scale, help="1 makes about 300 MB")
    for name, text in (
        ("users", "the school's own users"), ("units", "units of the course"), ("media-files", "media files"),
        ("media-bytes", "bytes of media in all"),
    ):  # fmt: skip
        given = os.environ.get("GSTUDIO_STANDIN_" + name.upper().replace("-", "_"))
        generate.add_argument(f"--{name}", type=int, default=int(given) if given else None, help=text)

    following = commands.add_parser("next-day", help="let N school days pass, in files and databases")
    _places(following)
    following.add_argument("days", nargs="?", type=int, default=1, metavar="N")
    following.add_argument("--files-only", action="store_true", help="leave the databases alone")

    dump = commands.add_parser("bson", help="write the databases of generated data as a mongodump")
    _places(dump)
    dump.add_argument("--out", type=Path, required=True)

    commands.add_parser("serve", help="start the services and stay (what initialize.sh does)")
    commands.add_parser("birth", help="print the SQL that the image's PostgreSQL is born with")
    options = parser.parse_args(arguments)
    return COMMANDS[options.command](options)


def _places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=DATA, help="the server's /data")
    parser.add_argument("--datastore", type=Path, help="holds repository and studentResponseFiles")


def _datastore(options: argparse.Namespace) -> Path:
    """Return the given datastore; elsewhere than in the container, everything lies under the root."""
    if options.datastore:
        return Path(options.datastore)
    return DATASTORE if options.root == DATA else Path(options.root) / "assessment-media"


def _generate(options: argparse.Namespace) -> int:
    sizes = Sizes.of(
        options.scale,
        users=options.users,
        units=options.units,
        media_files=options.media_files,
        media_bytes=options.media_bytes,
    )
    school = school_of(options.seed, options.school_code, options.school_name)
    made = tree.generate(tree.Tree(options.root, _datastore(options), school, sizes), say)
    say("done" if made else "there is data already: nothing made")
    return 0


def _next_day(options: argparse.Namespace) -> int:
    here = tree.open_tree(options.root, _datastore(options))
    for _ in range(options.days):
        day.next_day(here)
        say(f"day {here.day}")
    if options.root == DATA and not options.files_only:
        live.load_users(here.users())
        live.load_documents(documents.databases(here.school, here.sizes, _index(here), here.day))
    return 0


def _index(here: tree.Tree) -> list[tuple[str, int]]:
    return tree.media_index(here.school, here.sizes, here.day)


def _bson(options: argparse.Namespace) -> int:
    here = tree.open_tree(options.root, _datastore(options))
    for database, collections in documents.databases(here.school, here.sizes, _index(here), here.day).items():
        folder = options.out / database
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in documents.bson_files(collections, database):
            (folder / name).write_bytes(content)
    return 0


def _serve(options: argparse.Namespace) -> int:
    return serve.serve()


def _birth(options: argparse.Namespace) -> int:
    sys.stdout.write(sql.birth(people.factory_users()))
    return 0


COMMANDS = {"generate": _generate, "next-day": _next_day, "bson": _bson, "serve": _serve, "birth": _birth}

if __name__ == "__main__":
    sys.exit(main())
