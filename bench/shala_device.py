"""What a benchmark does to shala's databases: python bench/shala_device.py COMMAND CONFIG ...

write CONFIG RECORDS SEED STUDENTS   at a device: visits come into being
count CONFIG                         at a device: how many visits there are
crowd CONFIG ZONE NUMBER THERE       at the centre: so many devices more, each with a record of its own
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from nacl.signing import SigningKey
from shala_agent.records import Change
from shala_agent.segment import NONE, Entry, encode_entry, make_segment
from visits import FIRST_MOMENT, learner_name, user_ids, visits


def write(config: str, records: str, seed: str, students: str) -> dict[str, int]:
    """Write visits at a device."""
    from shala_agent.config import read_config
    from shala_agent.zone import changing

    with changing(read_config(Path(config)), "bench") as store:
        return {"changed": store.write(changes(int(records), int(seed), int(students)), FIRST_MOMENT)}


def count(config: str) -> dict[str, int]:
    """Count the visits of a device that can be seen."""
    from shala_agent.config import read_config
    from shala_agent.zone import reading

    with reading(read_config(Path(config))) as store:
        return {"records": sum(1 for _ in store.records("activity"))}


def crowd(config: str, zone_name: str, number: str, there: str) -> dict[str, int]:
    """Enrol devices at the centre, and take a segment of each."""
    from shala_central.config import read_config
    from shala_central.uploads import take
    from shala_central.zones import Zones

    zones = Zones.open(read_config(Path(config)).zones)
    for name in range(int(there), int(there) + int(number)):
        key = SigningKey(hashlib.sha256(f"crowd {name}".encode()).digest())
        public = bytes(key.verify_key)
        id_ = hashlib.sha256(public).digest()
        with zones.database.writing() as session:
            zones.enrol(session, zones.zone(session, zone_name), public, id_, f"crowd-{name}")
        with zones.database.reading() as session:
            device = zones.device(session, id_)
        if device is None:
            raise SystemExit("a device that was just enrolled is not there")
        entry = Entry("account", f"crowd-{name}", 1, 1, FIRST_MOMENT, '{"first_name":"A"}')
        segment = make_segment(key, zone_name, 1, 1, NONE, [encode_entry(entry)])
        take(zones, device, segment.id, 0, len(segment.data), segment.data)
    zones.database.close()
    return {"devices": int(number)}


def changes(records: int, seed: int, students: int) -> Iterator[Change]:
    """Yield students and visits as changes of records."""
    for number, id_ in enumerate(user_ids(students)):
        yield Change("account", learner_name(number), {"user_id": id_})
    for visit in visits(records, seed, of=students):
        value = {
            "user_id": visit.user,
            "content_id": visit.content_id,
            "kind": visit.kind,
            "score": visit.score,
            "payload": visit.payload,
        }
        yield Change("activity", f"{visit.learner}/{visit.id}", value)


def main() -> None:
    """Run one command."""
    deed = {"write": write, "count": count, "crowd": crowd}[sys.argv[1]]
    print(json.dumps(deed(*sys.argv[2:])))


if __name__ == "__main__":
    main()
