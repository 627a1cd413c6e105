"""The command mongorestore, as far as restores use it: real BSON into port 27017, 3.2's lines on stderr."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from bson import decode_file_iter
from bson.codec_options import CodecOptions
from bson.errors import InvalidBSON
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient
from pymongo.collection import Collection
from pymongo.errors import ConnectionFailure

from . import faults
from .mongodump import failed, line

AT_ONCE = 1000  # documents in one insertion


def main(arguments: list[str] | None = None) -> int:
    """Restore one database from its folder of a dump and return the exit code."""
    parser = argparse.ArgumentParser(prog="mongorestore", add_help=False)
    parser.add_argument("-h", "--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=27017)
    parser.add_argument("-d", "--db", required=True)
    parser.add_argument("--drop", action="store_true")
    parser.add_argument("--maintainInsertionOrder", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--help", action="help")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    try:
        _restore(options)
    except OSError as error:
        return failed(f"error reading data: {error.strerror}: {error.filename}")
    except ConnectionFailure:
        return failed("error connecting to db server: no reachable servers")
    except Exception as error:
        return failed(str(error))
    return 0


def _restore(options: argparse.Namespace) -> None:
    line(f"building a list of collections to restore from {options.folder} dir")
    codec = CodecOptions(document_class=RawBSONDocument)
    server: MongoClient[RawBSONDocument] = MongoClient(
        options.host,
        options.port,
        document_class=RawBSONDocument,
        serverSelectionTimeoutMS=3000,
        connectTimeoutMS=3000,
    )
    with server:
        target = server.get_database(options.db, codec_options=codec)
        for dump in sorted(options.folder.glob("*.bson")):
            name = f"{options.db}.{dump.stem}"
            line(f"reading metadata for {name} from {dump.with_suffix('.metadata.json')}")
            collection = target[dump.stem]
            if options.drop:
                collection.drop()
            if dump.stem not in target.list_collection_names():
                target.create_collection(dump.stem)
            line(f"restoring {name} from {dump}")
            time.sleep(faults.slowness("dump-slow"))
            count = _insert(collection, dump)
            if not options.quiet:
                line(f"finished restoring {name} ({count} document{'' if count == 1 else 's'})")
    line("done")


def _insert(collection: Collection[RawBSONDocument], dump: Path) -> int:
    count = 0
    batch: list[RawBSONDocument] = []
    with dump.open("rb") as file:
        try:
            for document in decode_file_iter(file, collection.codec_options):
                batch.append(document)
                if len(batch) == AT_ONCE:
                    collection.insert_many(batch)
                    count, batch = count + len(batch), []
        except InvalidBSON as error:
            # What came before it is in the database, as with the real one.
            raise ValueError(f"{collection.full_name}: error restoring from {dump}: {error}") from None
        finally:
            if batch:
                collection.insert_many(batch)
                count += len(batch)
    return count


def run() -> None:
    """Run as the program /usr/bin/mongorestore."""
    code = main()
    sys.stderr.flush()
    os._exit(code)  # PyMongo's threads are not waited for


if __name__ == "__main__":
    run()
