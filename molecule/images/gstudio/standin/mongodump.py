"""The command mongodump, as far as backups use it: real BSON from port 27017, 3.2's lines on stderr."""

from __future__ import annotations

import argparse
import os
import sys
from datetime import datetime
from pathlib import Path

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.errors import ConnectionFailure

from . import documents, faults
from .school import IST


def main(arguments: list[str] | None = None) -> int:
    """Dump one database or all of them and return the exit code."""
    parser = argparse.ArgumentParser(prog="mongodump", add_help=False)
    parser.add_argument("-h", "--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=27017)
    parser.add_argument("-d", "--db")
    parser.add_argument("-c", "--collection")
    parser.add_argument("-o", "--out", type=Path, default=Path("dump"))
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--help", action="help")
    options = parser.parse_args(arguments)
    try:
        _dump(options)
    except OSError as error:
        return failed(f"error writing data: {error.strerror}: {error.filename}")
    except ConnectionFailure:
        return failed("error connecting to db server: no reachable servers")
    except Exception as error:
        return failed(str(error))
    return 0


def failed(reason: str) -> int:
    """Say why nothing more is done and return the exit code."""
    line(f"Failed: {reason}")
    return 1


def line(text: str) -> None:
    """Write a line as the tools of 3.2 do: with the time, on stderr."""
    stamp = datetime.now(IST).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
    print(f"{stamp}+0530\t{text}", file=sys.stderr, flush=True)


def _dump(options: argparse.Namespace) -> None:
    partial = faults.setting("partial-mongodump")
    codec = CodecOptions(document_class=RawBSONDocument)
    server: MongoClient[RawBSONDocument] = MongoClient(
        options.host,
        options.port,
        document_class=RawBSONDocument,
        serverSelectionTimeoutMS=3000,
        connectTimeoutMS=3000,
    )
    with server:
        names = [options.db] if options.db else sorted(set(server.list_database_names()) - {"admin", "local"})
        first = True
        for database in names:
            source = server.get_database(database, codec_options=codec)
            collections = (
                [options.collection] if options.collection else sorted(source.list_collection_names())
            )
            for name in collections:
                if not options.quiet:
                    line(f"writing {database}.{name} to ")
                found = [bytes(one.raw) for one in source[name].find()]
                content = b"".join(found)
                if partial == "cut" and not first and content:
                    content = content[: len(content) // 2 + 3]
                elif partial is not None and not first:
                    # Ends on a document boundary, as the dumps whose parent hung up too early.
                    content = b"".join(found[: len(found) // 10])
                folder = options.out / database
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.metadata.json").write_bytes(documents.metadata(database, name))
                faults.write_in_place(folder / f"{name}.bson", content, switch="dump-slow")
                if not options.quiet and (partial is None or first):
                    line(f"done dumping {database}.{name} ({len(found)} documents)")
                first = False


def run() -> None:
    """Run as the program /usr/bin/mongodump."""
    code = main()
    sys.stderr.flush()
    os._exit(code)  # PyMongo's threads are not waited for


if __name__ == "__main__":
    run()
