"""The record store without any network, each side in a process of its own.

    python bench/store_alone.py write FOLDER RECORDS   writes visits, cuts them, leaves the segments in FOLDER
    python bench/store_alone.py accept FOLDER          accepts these segments

Prints one line of JSON: CPU seconds, the peak of memory before and after, bytes of segments and of the file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from daemon import peak_mb
from nacl.signing import SigningKey
from shala_agent.membership import Statement, sign_statement
from shala_agent.records import Change, Records
from shala_device import changes
from visits import FIRST_MOMENT

ZONE = "bench"
_PAGE = 2000  # changes that are made ahead, so that making them is not measured


def write(folder: Path, number: int) -> dict[str, float]:
    """Measure the author."""
    centre, key = SigningKey.generate(), SigningKey.generate()
    statement = Statement(
        format=1, kind="enrol", zone=ZONE, key=bytes(key.verify_key).hex(), name="author", generation=1
    )
    (folder / "centre").write_bytes(bytes(centre.verify_key))
    (folder / "statement").write_bytes(sign_statement(centre, statement))
    with closing(_opened(folder, "author", key)) as records:
        said = {"base_mb": peak_mb(), "write": 0.0, "wire": 0.0}
        for page in _pages(changes(number, 1, max(1, number // 100))):
            began = time.process_time()
            records.write(page, FIRST_MOMENT)
            said["write"] += time.process_time() - began
        began = time.process_time()
        records.cut(key)
        said["cut"] = time.process_time() - began
        said["peak_mb"] = peak_mb()
        for place, data in enumerate(_segments(records)):
            (folder / f"{place:06d}.segment").write_bytes(data)
            said["wire"] += len(data)
    return said | {"disk": (folder / "author.sqlite").stat().st_size}


def accept(folder: Path) -> dict[str, float]:
    """Measure the one who gets it."""
    with closing(_opened(folder, "reader", SigningKey.generate())) as records:
        said = {"base_mb": peak_mb(), "accept": 0.0}
        for path in sorted(folder.glob("*.segment")):
            data = path.read_bytes()
            began = time.process_time()
            records.accept(data, from_centre=True)
            said["accept"] += time.process_time() - began
        said["peak_mb"] = peak_mb()
    return said | {"disk": (folder / "reader.sqlite").stat().st_size}


def _opened(folder: Path, name: str, key: SigningKey) -> Records:
    records = Records(folder / f"{name}.sqlite")
    centre, statement = ((folder / name).read_bytes() for name in ("centre", "statement"))
    records.enrol(ZONE, centre, bytes(key.verify_key), [statement])
    return records


def _segments(records: Records) -> Iterator[bytes]:
    """Yield what a client would upload, one after the other."""
    store = records.store
    while store is not None and (offers := records.offers(100)):
        for offer in offers:
            if (data := store.data(offer.id)) is not None:
                yield data
        records.set_at_centre(offer.id for offer in offers)


def _pages(made: Iterator[Change]) -> Iterator[list[Change]]:
    page: list[Change] = []
    for change in made:
        page.append(change)
        if len(page) == _PAGE:
            yield page
            page = []
    yield page


if __name__ == "__main__":
    deed, place, *rest = sys.argv[1:]
    print(json.dumps(write(Path(place), int(rest[0])) if deed == "write" else accept(Path(place))))
