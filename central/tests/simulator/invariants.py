"""Invariants: how I1 to I15 are checked, after every step and when the world has come to rest."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey
from shala_agent.records import Change, Records
from shala_agent.segment import read_segment
from shala_central.zone_status import zone_status

from simulator.machine import Process, look, remove_disk, version
from simulator.model import POISON, Copy, Held, Id, Name, Row, Sibling, joined, state, tail
from simulator.world import DAY, NEW, School, World

ROUNDS = 40  # in which a world must come to rest


class Watch:
    """What may only grow, looked at after every step."""

    def __init__(self) -> None:
        self._haves: dict[Path, dict[bytes, tuple[str, bool]]] = {}
        self._said: dict[Path, set[bytes]] = {}
        self._lists: dict[str, list[bytes]] = {}
        self._counters: dict[tuple[Path, int], int] = {}
        self._cursor: dict[tuple[Path, str], tuple[int, int]] = {}
        self._versions: dict[Path, tuple[Path, int]] = {}

    def look(self, world: World) -> None:
        """Check I6 and I7: nothing that was there is gone, nothing that was said is taken back."""
        for path in (world.centre_file, *(school.file for school in world.schools)):
            if not self._changed(path):
                continue
            db = look(path)
            now = _segments(db, path == world.centre_file)
            before, zone = self._haves.get(_disk(path), {}), _zone(db, path == world.centre_file)
            if gone := {id_ for id_ in before.keys() - now if zone in {"", before[id_][0]} or before[id_][1]}:
                world.violated(
                    "I6", f"{path.parent.name} has no longer {sorted(one.hex()[:12] for one in gone)}"
                )
            self._haves[_disk(path)] = now
            said = {bytes(id_) for (id_,) in db.execute("SELECT id FROM statement")}
            if gone := self._said.get(_disk(path), set()) - said:
                world.violated("I6", f"{path.parent.name} has forgotten {len(gone)} statements")
            self._said[_disk(path)] = said
            if path == world.centre_file:
                self._look_at_list(world)
            for school in world.schools:
                if school.file == path:
                    self._look_at(world, school)

    def _changed(self, path: Path) -> bool:
        now = version(path)
        changed = self._versions.get(_disk(path)) != now
        self._versions[_disk(path)] = now
        return changed

    def _look_at_list(self, world: World) -> None:
        db = look(world.centre_file)
        for zone, name in db.execute("SELECT id, name FROM zone").fetchall():
            rows = db.execute("SELECT id FROM arrival WHERE zone = ? ORDER BY place", (zone,)).fetchall()
            ids, key = [bytes(id_) for (id_,) in rows], f"{_disk(world.centre_file)} {name}"
            before = self._lists.get(key, [])
            if ids[: len(before)] != before:
                world.violated(
                    "I6", f"{name}: the list of arrivals had {len(before)} items, and has other ones now"
                )
            self._lists[key] = ids

    def _look_at(self, world: World, school: School) -> None:
        db = look(school.file)
        meta = dict(db.execute("SELECT name, value FROM meta").fetchall())
        if "zone" not in meta:
            return
        key = (_disk(school.file), str(meta["zone"]))
        cursor = (int(meta.get("kept cursor_place") or 0), school.begun_anew)
        before = self._cursor.get(key, (0, 0))
        if 0 < cursor[0] < before[0] and cursor[1] == before[1]:
            world.violated("I6", f"the cursor of {school.name} goes back from {before[0]} to {cursor[0]}")
        self._cursor[key] = cursor
        count = (_disk(school.file), int(meta["epoch"]))
        if int(meta["counter"]) < self._counters.get(count, 0):
            world.violated(
                "I6", f"{school.name} has counted to {self._counters[count]}, and says {meta['counter']}"
            )
        self._counters[count] = int(meta["counter"])
        counters = [one.counter for one in tail(school.file)]
        missing = school.written - world.model.on_disk(school.file) - _gone(world)
        if missing:
            world.violated("I7", f"{school.name} has lost of its own {_shown(missing)}")
        if counters and counters[-1] > int(meta["counter"]):
            world.violated("I7", f"{school.name} counts {meta['counter']} and has written {counters[-1]}")


def _segments(db: Any, at_centre: bool) -> dict[bytes, tuple[str, bool]]:
    """Return of each segment in a database its zone, and whether it must stay when that zone is left: what a
    server wrote itself, or does not know the centre to have.
    """
    stays = "1" if at_centre else "s.ours > 0 OR s.at_centre NOT IN (1, 3)"
    query = f"SELECT s.id, z.name, {stays} FROM segment s JOIN zone z ON z.id = s.zone"
    return {bytes(id_): (zone, bool(must)) for id_, zone, must in db.execute(query)}


def _zone(db: Any, at_centre: bool) -> str:
    """Return the zone that a server is in, "" for the centre, which is in all, and who is in none."""
    rows = [] if at_centre else db.execute("SELECT value FROM meta WHERE name = 'zone'").fetchall()
    return str(rows[0][0]) if rows else ""


def _disk(path: Path) -> Path:
    """Return the disk that a file is on: a process that dies leaves the same one."""
    return path.parent.with_name(path.parent.name.partition("~")[0])


def _gone(world: World) -> set[Id]:
    return {id_ for id_ in world.model.writes if id_[:3] in world.model.redacted}


# -- coming to rest ------------------------------------------------------------------------------------------


def come_to_rest(world: World, chance: random.Random) -> None:
    """Have everybody sync, on good lines, until nothing moves any more."""
    clear_up(world)
    for carrier in world.carriers:
        for school in world.schools:
            world.give(school, [data for _, data in carrier.segments], carrier.statements, chance)
    for _ in range(ROUNDS):
        world.machine.sleep(2 * DAY)  # what could not be had is asked for once a day, when there is news
        moved = False
        for school in world.schools:
            result = world.sync(school, chance)
            if result is None:
                raise AssertionError("nobody dies any more")
            moved |= result.moved or bool(result.forks or result.restarts)
        if not moved:
            return
    world.violated("I1", f"it does not come to rest in {ROUNDS} rounds")


def clear_up(world: World) -> None:
    """End all trouble; what is on its way arrives."""
    world.line.trouble = world.line.busy = world.crashes = 0.0
    while world.line.deliver_late():
        pass
    _check_reports(world)


def last_words(world: World, chance: random.Random) -> None:
    """Have everybody say one thing more: a server asks again for what it could not have when there is news."""
    clear_up(world)
    for school in world.schools:
        changes = [
            Change("account", "last", {}),
            Change("activity", f"last/{school.name}-{chance.random()}", {}),
        ]
        world.write(school, changes, chance)


def check(world: World, chance: random.Random) -> None:
    """Check all that is to be so when the world is at rest."""
    world.forget_what_only_the_cut_off_know()
    _check_lost(world, world.copies(world.schools))
    for zone in world.zones:
        _check_zone(world, zone, chance)
    _check_cost(world, chance)
    _check_forks(world)


def outcome(world: World) -> str:
    """Return a digest of what all writes came to, without what clocks said (I9)."""
    found = hashlib.sha256()
    for zone in world.zones:
        for name, row in sorted(state(world.centre_file, zone, NEW).items()):
            siblings = [(one.log, one.counter, one.depth, one.value) for one in row.siblings]
            found.update(repr((zone, name, row.value, siblings, row.conflict, row.waits)).encode())
    return found.hexdigest()


def _check_lost(world: World, copies: list[Copy]) -> None:
    """I2: what was written is somewhere, but for what only a destroyed disk had."""
    there = {copy.id for copy in copies}
    if lost := set(world.model.writes) - there - world.model.excused - _gone(world):
        world.violated("I2", f"lost: {_shown(lost)}")


def _check_zone(world: World, zone: str, chance: random.Random) -> None:
    """Check all that the servers of a zone have. Who was cut off or has moved away is asked for nothing more: what
    only such a one has is missing where the centre, set back to a backup, has lost it.
    """
    model = world.model
    living = [school for school in world.schools if school.lives and school.zone == zone]
    at_centre = model.segments(world.centre_file, zone)
    counted = {copy.id for held in at_centre.values() for copy in held.copies if model.counts(copy)}
    copies = world.copies(living)
    somewhere = {copy.id for copy in copies if copy.id.zone == zone and copy.log and model.counts(copy)}
    if living and (late := somewhere - counted):
        world.violated("I2", f"{zone}: never came to the centre: {_shown(late)}")
    _check_held(world, zone, at_centre)
    central = state(world.centre_file, zone, world.centre.types)
    logs: dict[Id, set[bytes]] = {}
    for held in at_centre.values():
        for copy in held.copies:
            logs.setdefault(copy.id, set()).add(copy.log)
    # Written once, and in the tail of two disks when one of them was copied: both bring it to the centre, or one
    # of them does, and the other one what it has replaced it with.
    twice = {id_ for id_, of in logs.items() if len(of) > 1} | model.copied
    _check_state(world, zone, central, counted, twice)
    _check_forgotten(world, zone, living, central)
    for school in living:
        _check_same(
            world, f"{zone}: {school.name}", world.state_of(school), central, set(school.process.types)
        )
        _check_same_held(world, school, zone, at_centre)
        _check_shown(world, school)
        own = {id_ for id_ in school.written if id_.zone == zone} - model.excused - _gone(world)
        if alone := own - counted - model.past(counted):
            world.violated("I2", f"{school.name} lives, and alone knows of {_shown(alone)}")
    if at_centre:
        _check_order(world, zone, central, at_centre, chance)
    _check_status(world, zone, central, living)
    world.met["conflicts"] += sum(row.conflict for row in central.values())
    world.met["waiting"] += sum(row.waits is not None for row in central.values())
    db = look(world.centre_file)
    for table in ("fork", "quarantine", "segment"):
        only = " AND t.held IS NOT NULL" if table == "segment" else ""
        query = f"SELECT count(*) FROM {table} t JOIN zone z ON z.id = t.zone WHERE z.name = ?{only}"
        world.met[table if not only else "held"] += db.execute(query, (zone,)).fetchone()[0]


def _check_held(world: World, zone: str, at_centre: dict[bytes, Any]) -> None:
    """I10: what is not believed is what no living device wrote, or a revoked one after its cut-off."""
    db = look(world.centre_file)
    held = {bytes(id_) for (id_,) in db.execute("SELECT id FROM segment WHERE held IS NOT NULL")}
    for id_, one in at_centre.items():
        limit = world.model.limit(zone, one.key, one.log, id_)
        if (id_ in held) != (limit is not None and limit < one.first):
            world.violated("I10", f"{zone}: segment {id_.hex()[:12]} is {'' if id_ in held else 'not '}held")


def _check_same_held(world: World, school: School, zone: str, at_centre: dict[bytes, Any]) -> None:
    """I1, I10: a school has the segments of its zone that the centre has, all of them and no other ones: but
    those that count nowhere, and of which it has written anew what they say (`_check_zone` looks for that).
    """
    segments = world.model.segments(school.file, zone)
    here = set(segments) - (_written_anew(world, school, segments) - set(at_centre))
    if here != set(at_centre):
        lacks, more = set(at_centre) - here, here - set(at_centre)
        world.violated(
            "I1",
            f"{school.name} lacks segments {sorted(one.hex()[:12] for one in lacks)},"
            f" the centre {sorted(one.hex()[:12] for one in more)}",
        )


def _written_anew(world: World, school: School, here: dict[bytes, Held]) -> set[bytes]:
    """Return those of some segments that a school says it has written anew, and of which nothing counts."""
    rows = look(school.file).execute("SELECT id FROM segment WHERE ours = 2").fetchall()
    ids = {bytes(id_) for (id_,) in rows} & set(here)
    return {id_ for id_ in ids if not any(map(world.model.counts, here[id_].copies))}


def _check_same(
    world: World, who: str, mine: dict[Name, Row], central: dict[Name, Row], types: set[str]
) -> None:
    """I1, I3, I12: the same entitled set of segments makes the same state, digit for digit."""
    theirs = {name: row for name, row in central.items() if name[0] in types}
    if mine != theirs:
        name = min(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
        world.violated(
            "I1", f"{who} differs from the centre at {name}: {mine.get(name)} and {theirs.get(name)}"
        )


def _check_state(world: World, zone: str, central: dict[Name, Row], counted: set[Id], twice: set[Id]) -> None:
    """I2, I3, I9, I10, I11, I13: the state is what the model says of the writes that count."""
    newest = world.model.newest(counted)
    forked = _is_forked(world, zone)
    for name in {*central, *newest}:
        if name[1] == POISON or (zone, *name) in world.model.redacted or name[0] not in world.centre.types:
            continue
        row = central.get(name)
        there = {Id(zone, *name, one.at, one.value) for one in row.siblings} if row else set()
        wanted = newest.get(name, set())
        if strangers := there - counted:
            world.violated("I10", f"{zone}: {name} shows what is nobody's: {_shown(strangers)}")
        if missing := wanted - there:
            world.violated("I2", f"{zone}: {name} lacks {_shown(missing)}, has {_shown(there)}")
        if (back := there - wanted - strangers - twice) and not forked:
            world.violated("I11", f"{zone}: {name} shows again what was replaced: {_shown(back)}")
        if row is not None:
            _check_row(world, zone, name, row, central)


def _check_forgotten(world: World, zone: str, living: list[School], central: dict[Name, Row]) -> None:
    """I11: what was redacted is in no segment any more, and in no record."""
    counters: dict[bytes, set[int]] = {}
    for id_, counter in world.model.forgotten:
        counters.setdefault(id_, set()).add(counter)
    kept = set()
    for path in (world.centre_file, *(school.file for school in living)):
        for id_, of in counters.items():
            query = "SELECT s.data FROM segment s JOIN zone z ON z.id = s.zone WHERE s.id = ? AND z.name = ?"
            rows = look(path).execute(query, (id_, zone)).fetchall()
            for (data,) in rows:
                if still := of & {counter for counter, _ in read_segment(data).numbered()}:
                    world.violated(
                        "I11", f"{path.parent.name} has still what was redacted: {id_.hex()[:12]} {still}"
                    )
    for id_, held in world.model.segments(world.centre_file, zone).items():
        kept |= {copy.id for copy in held.copies if (id_, copy.counter) not in world.model.forgotten}
    for name, row in central.items():
        if name[1] == POISON:  # one redacted, another one not: the model cannot tell them apart
            continue
        there = {Id(zone, *name, one.at, one.value) for one in row.siblings}
        if (zone, *name) in world.model.redacted and there - kept:
            world.violated("I11", f"{zone}: {name} shows what was redacted: {_shown(there - kept)}")


def _check_row(world: World, zone: str, name: Name, row: Row, central: dict[Name, Row]) -> None:
    ranked = sorted(row.siblings, key=_rank, reverse=True)
    if list(row.siblings) != ranked:
        world.violated("I9", f"{zone}: {name} is won by another one than edit, depth and author say: {row}")
    for one in row.siblings:
        if Id(zone, *name, one.at, one.value) not in world.model.writes:
            world.violated("I2", f"{zone}: {name} is {one.value} of {one.at}, which nobody has written")
    needs = None if name[0] == "account" else f"account/{name[1].partition('/')[0]}"
    there = needs is None or tuple(needs.split("/", 1)) in central
    if row.waits != (None if there else needs):
        world.violated(
            "I13", f"{zone}: {name} waits for {row.waits}, while {needs} is {'' if there else 'not '}there"
        )
    policy = NEW[name[0]].policy
    if (None if row.value is None else json.loads(row.value)) != _value(row, policy):
        world.violated(
            "I3", f"{zone}: {name} shows {row.value}, which is not what its siblings come to: {row}"
        )
    values = {one.value if one.value is None else json.dumps(json.loads(one.value), sort_keys=True) for one in row.siblings}  # fmt: skip
    if row.conflict != (len(values) > 1 and policy in ("latest", "append")):
        world.violated("I2", f"{zone}: {name} is {'' if row.conflict else 'not '}called a conflict: {row}")


def _value(row: Row, policy: str) -> dict[str, Any] | None:
    values = [one.value for one in row.siblings if one.value is not None]
    if not values:
        return None
    return joined(values) if policy == "max" else dict(json.loads(values[0]))


def _rank(one: Sibling) -> tuple[bool, int, bytes, int]:
    return (one.value is not None, one.depth, one.log, one.counter)


def _check_shown(world: World, school: School) -> None:
    """I3: what is shown is each record once, with the value that its policy makes of the siblings."""
    with world.machine.running(school.process):
        shown = [(one.type, one.key, one.value) for one in school.records.records()]
    rows = world.state_of(school)
    wanted = []
    for name in sorted(rows):
        row = rows[name]
        value = _value(row, NEW[name[0]].policy)
        if value is not None and row.waits is None:
            wanted.append((*name, value))
    if shown != wanted:
        other = next((pair for pair in zip(shown, wanted, strict=False) if pair[0] != pair[1]), None)
        world.violated("I3", f"{school.name} shows {len(shown)} records of {len(wanted)}: {other}")


def _check_order(
    world: World, zone: str, central: dict[Name, Row], at_centre: dict[bytes, Any], chance: random.Random
) -> None:
    """I4, I5, I7: an observer that gets all in another order, some of it twice, and dies, has the same."""
    folder = world.folder / f"observer-{zone}-{chance.getrandbits(32)}"
    process = Process("observer", folder, NEW)
    things = [("statement", one) for one in world.statements(zone)]
    db = look(world.centre_file)
    query = "SELECT s.data FROM segment s JOIN zone z ON z.id = s.zone WHERE z.name = ? ORDER BY s.id"
    things += [("segment", bytes(data)) for (data,) in db.execute(query, (zone,))]
    chance.shuffle(things)
    things += chance.sample(things, min(5, len(things)))
    try:
        with world.machine.running(process):
            records = Records(folder / "records.sqlite")
            key = SigningKey(chance.randbytes(32))
            db = look(world.centre_file)
            public = bytes(db.execute("SELECT centre FROM zone WHERE name = ?", (zone,)).fetchone()[0])
            records.enrol(zone, public, bytes(key.verify_key))
            for kind, data in things:
                if kind == "segment":
                    records.accept(data, from_centre=False)
                else:
                    records.state([data])
        _check_same(world, f"I5: {zone}: who hears it in another order", state(folder / "records.sqlite", zone, NEW), central, set(NEW))  # fmt: skip
    finally:
        process.close()
        remove_disk(folder)


def _is_forked(world: World, zone: str) -> bool:
    query = "SELECT 1 FROM fork f JOIN zone z ON z.id = f.zone WHERE z.name = ?"
    db = look(world.centre_file)
    return bool(db.execute(query, (zone,)).fetchall())


def _check_cost(world: World, chance: random.Random) -> None:
    """I14: when nothing is new, one request of at most a kilobyte is all."""
    for school in world.schools:
        if not school.lives:
            continue
        result = world.sync(school, chance)
        if result is None:
            continue
        if result.outcome != "done":
            world.violated("I15", f"{school.name} is at rest and says '{result.outcome}': {result.reason}")
        elif result.requests != 1 or result.bytes_up + result.bytes_down > 1024 or result.moved:
            world.violated("I14", f"nothing is new, and {school.name} takes {result.requests} requests of {result.bytes_up} + {result.bytes_down} bytes")  # fmt: skip
        lag = result.lag_after
        if lag.entries or lag.segments_down:
            world.violated("I15", f"{school.name} is at rest and says that it lacks {lag}")


def _check_forks(world: World) -> None:
    """I8: no two disks count in one epoch; what was continued twice is known as a fork everywhere."""
    epochs: dict[tuple[bytes, int], School] = {}
    for school in world.schools:
        if not school.lives:
            continue
        key = (school.public, school.records.epoch)
        if key in epochs:
            world.violated("I8", f"{school.name} and {epochs[key].name} count in one epoch")
        epochs[key] = school
    db = look(world.centre_file)
    known = {bytes(log) for (log,) in db.execute("SELECT log FROM fork")}
    rows = db.execute('SELECT log, "first", "last" FROM segment WHERE held IS NULL ORDER BY log, "first"').fetchall()  # fmt: skip
    for one, other in itertools.pairwise(rows):
        if one[0] == other[0] and other[1] <= one[2] and bytes(one[0]) not in known:
            world.violated(
                "I8", f"counters {other[1]} to {one[2]} of a log are there twice, and nobody says so"
            )


def _check_status(world: World, zone: str, central: dict[Name, Row], living: list[School]) -> None:
    """I15: the centre's report is true: nobody behind, every conflict, what waits, every fork."""
    with world._operating() as (operator, session):
        status = zone_status(operator, session, operator.zone(session, zone), shown=10_000)
    wanted = sorted(f"{name[0]} {name[1]}" for name, row in central.items() if row.conflict)
    if status.conflicts != wanted:
        world.violated("I15", f"{zone}: the centre names the conflicts {status.conflicts}, not {wanted}")
    shown = sum(row.waits is None and row.value is not None for row in central.values())
    if status.records != shown:
        world.violated("I15", f"{zone}: the centre counts {status.records} records, not {shown}")
    behind = {one.device for one in status.devices if one.is_behind and not one.revoked}
    for school in living:
        if school.public not in world.clones and school.public.hex() in behind:
            world.violated("I15", f"{zone}: {school.name} has everything and is called behind")


def _check_reports(world: World) -> None:
    """I15: whoever lacks something is listed as behind, by the centre or by itself."""
    for zone in world.zones:
        at_centre = set(world.model.segments(world.centre_file, zone))
        with world._operating() as (operator, session):
            status = zone_status(operator, session, operator.zone(session, zone), shown=10_000)
        behind = {one.device for one in status.devices if one.is_behind or one.contact is None}
        for school in world.schools:
            if school.zone != zone or not school.lives or school.public in world.clones | world.set_back:
                continue
            if world.faults["restored centres"]:
                continue  # what it knew of its devices is of then
            device = hashlib.sha256(school.public).hexdigest()
            segments = world.model.segments(school.file, zone)
            here = set(segments)
            # A server has what its key has signed: nobody tells it that it lacks that.
            lacks = at_centre - here - world.poisoned.get(school.public, set())
            with world.machine.running(school.process):
                unsent = school.records.unsent().entries + school.records.uncut()
            if lacks and device not in behind and not _says_so(school):
                world.violated(
                    "I15", f"{zone}: {school.name} lacks {len(lacks)} segments, and nobody says so"
                )
            own = {copy.id for copy in tail(school.file)}
            for id_ in here - at_centre - _written_anew(world, school, segments):
                own |= {copy.id for copy in world.model.held(id_, bytes).copies}
            if own and not unsent:
                world.violated("I15", f"{zone}: {school.name} has what the centre lacks, and does not say so")


def _says_so(school: School) -> bool:
    """Return whether a school says itself that its last sync was not done; one that died says nothing."""
    return school.result is None or school.result.outcome != "done"


def _shown(ids: set[Id]) -> str:
    return ", ".join(f"{one.type}/{one.key}@{one.at}" for one in sorted(ids, key=str)[:4]) + (
        f" and {len(ids) - 4} more" if len(ids) > 4 else ""
    )
