"""World: a centre, schools and carriers. What they can do is in `ACTIONS`; who does what and when is drawn.

Everything that writes is the product's own code: the client, the stores, the centre's application, and what
the operator's commands call.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from nacl.signing import SigningKey
from shala_agent import enrol, record_types
from shala_agent.centre import Centre as CentreLine
from shala_agent.failure import AgentError
from shala_agent.membership import StatementRefused
from shala_agent.merge import RecordType
from shala_agent.records import Change, Records
from shala_agent.segment import Entry, SegmentRefused, encode_entry, make_segment
from shala_agent.store import HOLLOW
from shala_agent.sync import SyncResult, sync
from shala_central.config import ZoneSettings
from shala_central.database import Database
from shala_central.enrolment import create_token, move
from shala_central.server import make_server
from shala_central.zones import Zones

from simulator.line import Answer, Line, Request, call, flip
from simulator.machine import Crash, Machine, Process, Sizes, copy_disk, look, remove_disk, stop_looking
from simulator.model import NUMBERS, POISON, Copy, Id, Model, Name, Said, Sibling, Write, state, tail

YEAR = 365 * 86_400.0
DAY = 86_400.0
# The newest software knows one type more than the one that some schools still have.
NEW: Mapping[str, RecordType] = {
    **record_types.TYPES,
    "badge": RecordType("badge", 1, "latest", record_types._user_of, record_types._problem),
}
OLD: Mapping[str, RecordType] = {
    name: known for name, known in record_types.TYPES.items() if name != "course_progress"
}


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, text: str) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant


@dataclass(eq=False)
class School:
    """A school server: a disk, a key, and the client."""

    name: str
    process: Process
    key: SigningKey
    zone: str
    records: Records
    written: set[Id] = field(default_factory=set)  # own writes whose commit returned, on this disk
    lives: bool = True  # as a device of its zone
    syncs: int = 0
    result: SyncResult | None = None
    # How often its cursor may have begun anew: at a restart, at a fork, and when it died, having said nothing.
    begun_anew: int = 0
    # How often the centre had gone back to a backup when it was taken in here: then it sent all that it had heard.
    taken_in: int = 0

    @property
    def file(self) -> Path:
        return self.process.folder / "records.sqlite"

    @property
    def public(self) -> bytes:
        return bytes(self.key.verify_key)


@dataclass
class Backup:
    """A copy of a disk as it was."""

    folder: Path
    key: SigningKey
    zone: str
    written: set[Id]
    syncs: int
    answered: dict[tuple[bytes, int], bytes] = field(default_factory=dict)  # of the centre, see World


@dataclass
class Carrier:
    """Somebody with segments and statements in his bag, of any zone, whole or damaged."""

    segments: list[tuple[bytes, bytes]] = field(default_factory=list)  # id, bytes; whole ones
    damaged: list[bytes] = field(default_factory=list)
    statements: list[bytes] = field(default_factory=list)


@functools.cache
def _empty_database() -> bytes:
    """Return a migrated database of the centre: migrating takes longer than a run."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/zones.sqlite").open()
        with database.writing() as session:
            session.query("SELECT 1")
        database.close()
        db = look(Path(folder) / "zones.sqlite")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return (Path(folder) / "zones.sqlite").read_bytes()


class World:
    """One run's world, in a folder of its own."""

    def __init__(self, folder: Path, machine: Machine, chance: random.Random, sizes: Sizes) -> None:
        self.folder, self.machine, self.chance, self.sizes = folder, machine, chance, sizes
        self.model = Model()
        self.faults: Counter[str] = Counter()
        self.met: Counter[str] = Counter()  # what the run has seen of what it is for
        self.violations: list[Violation] = []
        self.trace = hashlib.sha256()
        self.story: list[str] | None = None
        self.line = Line(
            random.Random(chance.getrandbits(64)),
            self._serve,
            self.note,
            self._meanwhile,
            machine.sleep,
            watch=self._watch,
            point=machine.point,
        )
        self.crashes = 0.0  # how likely it is that a process dies during an action
        self.clocks = True  # are wrong, and jump
        self.schools: list[School] = []
        self.backups: list[Backup] = []
        self.centre_backups: list[Backup] = []
        self.carriers: list[Carrier] = []
        self.clones: set[bytes] = set()  # keys that more than one disk has, or had
        self.set_back: set[bytes] = set()  # keys whose disk was replaced by an older state of it
        self.poisoned: dict[bytes, set[bytes]] = {}  # unreadable segments, by who signed them
        self._number = 0
        self._disks = 0
        self._lost: dict[bytes, Said] = {}  # what the centre said, and no disk has any more
        self._users = [f"u{n}" for n in range(chance.randint(1, 3))]
        self._busy = False
        self._calm: School | None = None  # whose sync is watched for wasted bytes
        self._answered: dict[tuple[bytes, int], bytes] = {}  # of device and epoch: the last to open a session
        self._repeats = 0  # requests that were exactly the last one
        self._at_session: Callable[[], None] | None = None  # is done when the next session has been opened

    # -- beginnings ------------------------------------------------------------------------------------------

    def begin(self, zones: int, schools: int, carriers: int) -> None:
        """Make the centre, its zones, and schools that are enrolled."""
        folder = self.folder / "centre"
        folder.mkdir()
        (folder / "zones.sqlite").write_bytes(_empty_database())
        (folder / "zones.key").write_bytes(self.chance.randbytes(32))
        self.centre = Process("centre", folder, NEW)
        self._open_centre()
        self.zones = [f"z{n}" for n in range(zones)]
        with self._operating() as (operator, session):
            operator.create_organization(session, "clix")
            for zone in self.zones:
                operator.create_zone(session, zone, "clix")
        for _ in range(schools):
            self.new_school(self.chance)
        self.carriers = [Carrier() for _ in range(carriers)]

    def close(self) -> None:
        """Close all files."""
        for school in self.schools:
            school.process.close()
        self.centre.close()
        stop_looking()

    def note(self, *what: object) -> None:
        """Add to the trace: two runs of one seed have the same."""
        text = " ".join(map(str, what))
        self.trace.update(text.encode() + b"\n")
        if self.story is not None:
            self.story.append(text)

    def violated(self, invariant: str, text: str) -> None:
        """Note that an invariant does not hold."""
        self.violations.append(Violation(invariant, text))

    # -- the centre ------------------------------------------------------------------------------------------

    @property
    def centre_file(self) -> Path:
        return self.centre.folder / "zones.sqlite"

    def _open_centre(self) -> None:
        while True:
            settings = ZoneSettings(
                database=f"sqlite:///{self.centre_file}", key_file=str(self.centre.folder / "zones.key")
            )
            try:
                with self.machine.running(self.centre):
                    self._application, self._operator = make_server(settings), Zones.open(settings)
                return
            except Crash:
                self.centre.bury()

    def _serve(self, request: Request, cut: int | None) -> Answer:
        try:
            with self.machine.running(self.centre):
                return call(self._application, request, cut)
        except Crash as crash:
            if crash.process is not self.centre:
                raise
            self.faults["crash of the centre"] += 1
            self.note("centre dies")
            self.centre.bury()
            self._open_centre()
            raise httpx.ReadError("connection reset by peer") from None
        except Exception as error:
            self.violated("I13", f"the centre fails at {request.method} {request.path}: {error!r}")
            return Answer(500, (), b"")

    @contextlib.contextmanager
    def _operating(self) -> Iterator[tuple[Zones, Any]]:
        with self.machine.running(self.centre), self._operator.database.writing() as session:
            yield self._operator, session

    def _operate(self, work: Callable[[Zones, Any], Any]) -> bool:
        """Have the operator do something; the centre may die of it. Return whether it was done."""
        try:
            with self._operating() as (operator, session):
                work(operator, session)
        except Crash:
            self.faults["crash of the centre"] += 1
            self.centre.bury()
            self._open_centre()
            return False
        return True

    def _watch(self, request: Request, answer: Answer) -> None:
        """Look at what went over the line: receipts, and bytes that need not have been sent."""
        if request.method == "POST":
            if (
                request.path == "/v1/sync"
                and answer.status == 200
                and not json.loads(answer.body).get("fork")
            ):
                self._see_session(request)
            return
        id_ = bytes.fromhex(request.path.rpartition("/")[2])
        if self._calm is not None and not self.line.faults:
            self._check_wanted(self._calm, request, id_, answer)
        if request.method != "PUT" or answer.status != 200:
            return
        receipt = json.loads(answer.body)
        if receipt.get("whole"):
            db = look(self.centre_file)
            if not db.execute("SELECT 1 FROM segment WHERE id = ?", (id_,)).fetchall():
                self.violated("I6", f"a receipt for {id_.hex()[:12]}, which is not on the disk")

    def _see_session(self, request: Request) -> None:
        log = (dict(request.headers)[b"shala-device"], json.loads(request.body)["epoch"])
        self._repeats += self._answered.get(log) == request.body
        self._answered[log] = request.body
        if self._at_session is not None:
            opened, self._at_session = self._at_session, None
            opened()

    def _check_wanted(self, school: School, request: Request, id_: bytes, answer: Answer) -> None:
        """Check that no byte goes over a line twice: what is there is not sent, what was cut is resumed."""
        query = "SELECT 1 FROM segment WHERE id = ? AND held IS NOT ?"  # what is not whole is asked for again
        if request.method == "GET" and look(school.file).execute(query, (id_, HOLLOW)).fetchall():
            self.violated("I14", f"{school.name} fetches {id_.hex()[:12]}, which it has")
        if answer.status == 409:
            self.violated("I7", f"{school.name} does not go on where {id_.hex()[:12]} was cut")

    # -- doing -----------------------------------------------------------------------------------------------

    def act(self, name: str, chance: random.Random) -> None:
        """Do an action; whoever does it may die of it."""
        self.note("act", name)
        self.machine.sleep(chance.expovariate(1 / 3600))
        if chance.random() < self.crashes:
            self.centre.dies_after = int(chance.expovariate(1 / 15))
        getattr(self, f"do_{name}")(chance)
        self.centre.dies_after = None

    def _meanwhile(self) -> None:
        if self._busy:
            return
        self._busy = True
        try:
            chance = random.Random(self.line.chance.getrandbits(64))
            self.act(chance.choice(_MEANWHILE), chance)
        finally:
            self._busy = False

    def _as(self, school: School, chance: random.Random, work: Callable[[], Any]) -> Any:
        """Have a school do something; if it dies of it, start it again. Return None then."""
        if chance.random() < self.crashes:
            school.process.dies_after = int(chance.expovariate(1 / 6))
        try:
            with self.machine.running(school.process):
                return work()
        except Crash as crash:
            if crash.process is not school.process:
                raise
            self.faults["crash of a school"] += 1
            self.note(school.name, "dies")
            school.process.bury()
            self._open(school)
            return None
        finally:
            school.process.dies_after = None

    def _open(self, school: School) -> None:
        with self.machine.running(school.process):
            school.records = Records(school.file)

    def idle(self) -> list[School]:
        """Return the schools that are not in the middle of something."""
        return [one for one in self.schools if not self.machine.runs(one.process)]

    def _some(self, chance: random.Random, *, living: bool = False) -> School | None:
        there = [one for one in self.idle() if one.lives or not living]
        return chance.choice(there) if there else None

    # -- schools ---------------------------------------------------------------------------------------------

    def new_school(self, chance: random.Random, *, name: str = "", zone: str = "") -> School | None:
        """Make a school with an empty disk and enrol it."""
        self._disks += 1
        name = name or f"s{self._disks}"
        folder = self.folder / f"{name}-{self._disks}"
        types = OLD if chance.random() < 0.2 else NEW
        process = Process(name, folder, types, skew=self._skew(chance))
        key = SigningKey(chance.randbytes(32))
        with self.machine.running(process):
            records = Records(folder / "records.sqlite")
        school = School(name, process, key, zone or chance.choice(self.zones), records)
        return school if self._enrol(school, chance, replaces=bool(zone)) else None

    def _enrol(self, school: School, chance: random.Random, *, replaces: bool) -> bool:
        """Enrol a school, by a token, until it has worked."""
        tokens: list[str] = []

        def make(operator: Zones, session: Any) -> None:
            zone = operator.zone(session, school.zone)
            tokens.append(create_token(session, zone, school.name, 30, replaces=replaces))

        while not self._operate(make):
            tokens.clear()
        with self._saying():
            done = self._ask_to_enter(school, chance, tokens[0])
        if done and school not in self.schools:
            self.schools.append(school)
        self._see_who_lives()
        self.note("enrol", school.name, school.zone, school.public.hex()[:8])
        return done

    def _ask_to_enter(self, school: School, chance: random.Random, token: str) -> bool:
        """Have a school ask until it is answered; nobody else does anything meanwhile."""

        def work() -> bool:
            enrol.enrol_online(school.records, self._line_of(school), school.name, token)
            return True

        busy, self._busy = self._busy, True
        try:
            for _ in range(60):
                self.machine.sleep(60)
                with contextlib.suppress(AgentError):
                    if self._as(school, chance, work):
                        school.taken_in = self.faults["restored centres"]
                        return True
        finally:
            self._busy = busy
        return False

    def _line_of(self, school: School) -> CentreLine:
        return CentreLine("http://centre", school.key)

    def _skew(self, chance: random.Random) -> float:
        skew = chance.choice((0.0, chance.uniform(-60, 60), chance.uniform(-30, 30) * YEAR))
        return skew if self.clocks else 0.0

    def do_write(self, chance: random.Random) -> None:
        """Have a school write some changes."""
        if (school := self._some(chance)) is None:
            return
        self._write_some(school, chance)

    def _write_some(self, school: School, chance: random.Random, *users: str) -> None:
        changes = {}
        for user in users:
            self._number += 1
            changes["account", user] = Change("account", user, {"w": self._number})
        for _ in range(chance.choice((1, 1, 2, 3, 8))):
            change = self._change(school, chance)
            changes[change.type, change.key] = change
        self.write(school, list(changes.values()), chance)

    def _change(self, school: School, chance: random.Random) -> Change:
        type_ = chance.choice([name for name in ("account", "progress", "activity", "assessment", "course_progress", "badge") if name in school.process.types])  # fmt: skip
        user = chance.choice(self._users)
        if type_ == "account":
            key = user
        elif type_ == "activity":
            self._number += 1
            key = f"{user}/{self._number}"
        else:
            key = f"{user}/x{chance.randrange(2)}"
        if chance.random() < 0.12:
            return Change(type_, key, None)
        if type_ in ("progress", "course_progress"):
            value: dict[str, Any] = {f"n{chance.randrange(3)}": chance.randrange(100) for _ in range(2)}
        else:
            self._number += 1
            value = {"w": self._number, f"f{chance.randrange(3)}": chance.randrange(9)}
            if chance.random() < 0.1:
                value["noise"] = chance.randbytes(chance.choice((50, 400))).hex()
        return Change(type_, key, value)

    def write(self, school: School, changes: list[Change], chance: random.Random, source: str = "") -> bool:
        """Have a school write these changes, and note what became of them; return whether it got through."""
        self._number += 1
        at = int(self.machine.now + school.process.skew) * NUMBERS + self._number
        before = {(one.type, one.key): self._siblings(school, (one.type, one.key)) for one in changes}
        for one in changes:
            self.note("write", school.name, at, one.type, one.key, one.value)
        whole = self._as(school, chance, lambda: school.records.write(changes, at, source))
        for change in changes:
            name = (change.type, change.key)
            after = self._siblings(school, name)
            mine = [one for one in after if one.at == at]
            if mine:
                id_ = Id(school.zone, *name, at, mine[0].value)
                parents = frozenset(Id(school.zone, *name, one.at, one.value) for one in before[name])
                self.model.writes[id_] = Write(id_, parents)
                school.written.add(id_)
            if whole is not None and not source:
                self._check_effect(school, change, before[name], after, bool(mine))
        return whole is not None

    def _check_effect(
        self, school: School, change: Change, before: list[Sibling], after: list[Sibling], wrote: bool
    ) -> None:
        """Check that who has written sees it."""
        old = [json.loads(one.value) for one in before if one.value is not None]
        new = [json.loads(one.value) for one in after if one.value is not None]
        policy = school.process.types[change.type].policy
        if change.value is None:
            good = not new and (wrote or not old)
        elif policy == "max":
            best: dict[str, int] = {}
            for one in (*old, change.value):
                for field_, number in one.items():
                    best[field_] = max(number, best.get(field_, number))
            shown: dict[str, int] = {}
            for one in new:
                for field_, number in one.items():
                    shown[field_] = max(number, shown.get(field_, number))
            good = shown == best
        elif policy == "append" and old:
            good = new == old and not wrote
        else:  # fields that only others know are carried on
            good = new[0] == {**(old[0] if old else {}), **change.value} and len(new) == 1
        if not good:
            self.violated(
                "I2", f"{school.name} does not see what it has written: {change} after {before}: {after}"
            )

    def _siblings(self, school: School, name: Name) -> list[Sibling]:
        with self.machine.running(school.process):
            record = school.records.record(*name)
        return [Sibling(*one[:6]) for one in record.siblings] if record is not None else []

    def do_hear_again(self, chance: random.Random) -> None:
        """Have a source say again what it said before: nothing comes of it."""
        if (school := self._some(chance)) is None:
            return
        user = chance.choice(self._users)
        changes = [
            Change("account", user, {"w": 0, "heard": school.name}),
            Change("activity", f"{user}/heard-{school.name}", {}),
        ]
        heard = self.write(school, changes, chance, source="derived")
        before = school.records.counter
        if (
            heard
            and self.write(school, changes, chance, source="derived")
            and school.records.counter != before
        ):
            self.violated("I4", f"{school.name} hears the same again and writes it again")

    def do_sync(self, chance: random.Random) -> None:
        """Have a school talk to the centre."""
        if (school := self._some(chance)) is not None:
            self.sync(school, chance)

    def sync(self, school: School, chance: random.Random) -> SyncResult | None:
        """Have this school talk to the centre; None if it died."""
        school.syncs += 1
        faults, was_set_back = self.line.faults.total(), self._is_set_back(school)
        repeats = self._repeats
        parts = school.process.folder / "parts"
        self._calm = school if not self.line.busy else None
        result = self._as(school, chance, lambda: sync(school.records, self._line_of(school), parts))
        self._calm, school.result = None, result
        school.begun_anew += result.restarts + result.forks if result is not None else 1
        if result is None:
            return None
        self.note("sync", school.name, result.outcome, result.reason, result.records_up, result.records_down, result.forks)  # fmt: skip
        undisturbed = not self.line.busy and self.line.faults.total() == faults
        # Who says exactly what was said last goes on where the other one is: they part with the next request.
        parted = self._repeats == repeats
        if was_set_back and parted and undisturbed and result.outcome in ("done", "partly"):
            self.met["forks by number"] += 1
            if not result.forks or not self._is_disputed(school):
                self.violated("I8", f"{school.name} was set back or is a copy, and nobody says so")
        return result

    def _is_set_back(self, school: School) -> bool:
        """Return whether somebody else has spoken as this school, in this epoch, since it did."""
        meta = dict(look(school.file).execute("SELECT name, value FROM meta").fetchall())
        rows = look(self.centre_file).execute(
            'SELECT "number", shown, given FROM contact WHERE device = ? AND epoch = ?',
            (hashlib.sha256(school.public).digest(), meta.get("epoch")),
        )
        for number, *nonces in rows.fetchall():
            if number > int(meta.get("kept number") or 0):
                return True
            # With numbers that jumped only the nonce tells; a centre that was restored has forgotten some.
            if not self.faults["restored centres"]:
                return (meta.get("kept nonce") or "") not in nonces
        return False

    def _is_disputed(self, school: School) -> bool:
        rows = look(self.centre_file).execute(
            "SELECT 1 FROM contact WHERE device = ? AND disputed IS NOT NULL",
            (hashlib.sha256(school.public).digest(),),
        )
        return bool(rows.fetchall())

    def do_cut(self, chance: random.Random) -> None:
        """Have a school cut a segment without sending it."""
        if (school := self._some(chance)) is not None:
            self._as(school, chance, lambda: school.records.cut(school.key))

    def do_jump(self, chance: random.Random) -> None:
        """Have somebody's clock jump."""
        process = chance.choice([*(one.process for one in self.schools), self.centre])
        process.skew = self._skew(chance)
        if process is self.centre:  # its sessions end, or begin in the future
            process.skew = chance.uniform(-5000, 5000) if self.clocks else 0.0
        self.faults["clock jumps"] += 1

    def do_late(self, chance: random.Random) -> None:
        """Have a request arrive that was sent long ago."""
        if self.line.deliver_late():
            self.faults["late arrivals"] += 1

    def do_restart_centre(self, chance: random.Random) -> None:
        """Stop the centre's program and start it again."""
        if self.machine.runs(self.centre):
            return
        self.centre.close()
        self._open_centre()

    # -- disks -----------------------------------------------------------------------------------------------

    def do_backup(self, chance: random.Random) -> None:
        """Make a backup of a school's disk."""
        if (school := self._some(chance)) is not None:
            self.backups.append(self._copied(school))

    def _copied(self, school: School) -> Backup:
        self._disks += 1
        folder = self.folder / f"copy-{self._disks}"
        copy_disk(school.process.folder, folder)
        return Backup(folder, school.key, school.zone, set(school.written), school.syncs)

    def do_restore(self, chance: random.Random) -> None:
        """Go back to a backup, k syncs old: what was written since is only where it has come to by now."""
        pairs = [
            (school, backup)
            for school in self.idle()
            for backup in self.backups
            if backup.key is school.key and backup.zone == school.zone
        ]
        if not pairs:
            return
        self._set_back(*chance.choice(pairs))

    def _set_back(self, school: School, backup: Backup) -> None:
        # A revocation may name a head that this disk has no more: it cannot tell what came before that.
        segments = self.model.segments(backup.folder / school.file.name).values()
        self.model.copied |= {one.id for held in segments if held.key == school.public for one in held.copies}
        with self._destroying():
            self._put_on(school, backup)
        self.set_back.add(school.public)
        self.faults["restored backups"] += 1
        self.note("restore", school.name, school.syncs)

    def do_go_on_alone(self, chance: random.Random) -> None:
        """Set a disk back after a sync, and have the school write and cut from there, so that its log goes on in
        one way at the centre and in another one here; then it gets a new key, or leaves its zone and comes back.
        """
        school = self._some(chance, living=True)
        if school is None or school.public in self.clones:
            return
        backup, user = self._copied(school), chance.choice(self._users)
        self._write_some(school, chance, user)
        self.sync(school, chance)
        self._set_back(school, backup)
        self._write_some(school, chance, user)
        self._as(school, chance, lambda: school.records.cut(school.key))
        self._write_some(school, chance, user)
        if chance.random() < 0.5:
            self._change_key(school, chance)
            return
        for _ in range(2):
            self._move(school, chance)
            self._write_some(school, chance, user)

    def _put_on(self, school: School, backup: Backup) -> None:
        file = backup.folder / school.file.name
        cut = [copy for held in self.model.segments(file).values() for copy in held.copies]
        anew = [copy for copy in cut if not self.model.counts(copy)]
        self.model.copied |= {copy.id for copy in (*tail(file), *anew)}
        self._disks += 1
        folder = self.folder / f"{school.name}-{self._disks}"
        copy_disk(backup.folder, folder)
        school.process.close()
        remove_disk(school.process.folder)
        school.process.folder = folder
        school.written, school.syncs = set(backup.written), backup.syncs
        self._open(school)

    def do_clone(self, chance: random.Random) -> None:
        """Copy a disk, and have both go on: the same key on the same kind of machine."""
        if (school := self._some(chance, living=True)) is None or len(self.schools) > 14:
            return
        backup = self._copied(school)
        process = Process(f"{school.name}c", backup.folder, school.process.types, self._skew(chance))
        clone = School(process.name, process, school.key, school.zone, school.records, set(school.written))
        clone.taken_in = school.taken_in
        self._put_on(clone, backup)
        self.schools.append(clone)
        self.clones.add(school.public)
        self.faults["cloned disks"] += 1
        self.note("clone", school.name)

    def do_replace_disk(self, chance: random.Random) -> None:
        """A disk breaks: the school begins with an empty one and a new key, in its old name."""
        school = self._some(chance, living=True)
        if school is None or school.public in self.clones:
            return
        with self._destroying():
            if self.new_school(chance, name=school.name, zone=school.zone) is None:
                return
            self._drop(school)
        self.faults["broken disks"] += 1

    def _drop(self, school: School) -> None:
        school.process.close()
        remove_disk(school.process.folder)
        self.schools.remove(school)

    def do_update(self, chance: random.Random) -> None:
        """Give a school the newest software."""
        old = [one for one in self.idle() if one.process.types is OLD]
        if old:
            school = chance.choice(old)
            school.process.close()
            school.process.types = NEW
            self._open(school)
            self.note("update", school.name)

    # -- the operator ----------------------------------------------------------------------------------------

    def do_backup_centre(self, chance: random.Random) -> None:
        """Make a backup of the centre."""
        if not self.machine.runs(self.centre):
            self._disks += 1
            folder = self.folder / f"copy-{self._disks}"
            copy_disk(self.centre.folder, folder)
            answered = dict(self._answered)
            self.centre_backups.append(Backup(folder, self._operator.key, "", set(), 0, answered))

    def do_restore_centre(self, chance: random.Random) -> None:
        """Go back to a backup of the centre."""
        usable = [one for one in self.centre_backups if self._may_go_back(one)]
        if usable:
            self._go_back(usable[-1] if chance.random() < 0.6 else chance.choice(usable))

    def do_forget_session(self, chance: random.Random) -> None:
        """Have a school write and talk to the centre, and the centre go back to the middle of that session."""
        school = self._some(chance, living=True)
        if school is None or self.machine.runs(self.centre):
            return
        self.write(school, [self._change(school, chance)], chance)
        before = len(self.centre_backups)
        self._at_session = lambda: self.do_backup_centre(chance)
        self.sync(school, chance)
        self._at_session = None
        if self.centre_backups[before:] and self._may_go_back(self.centre_backups[before]):
            self._go_back(self.centre_backups[before])

    def _go_back(self, backup: Backup) -> None:
        if self.machine.runs(self.centre):
            return
        with self._destroying():
            self.centre.close()
            remove_disk(self.centre.folder)
            self._disks += 1
            self.centre.folder = self.folder / f"centre-{self._disks}"
            copy_disk(backup.folder, self.centre.folder)
            self._answered = dict(backup.answered)
            self._open_centre()
        self.faults["restored centres"] += 1
        self.note("restore centre")

    def _may_go_back(self, backup: Backup) -> bool:
        """Return whether the operator need not enrol anybody again: every living school is in the backup."""
        query = "SELECT d.key, z.name FROM device d JOIN zone z ON z.id = d.zone WHERE d.revoked IS NULL"
        there = {(bytes(key), zone) for key, zone in look(backup.folder / "zones.sqlite").execute(query)}
        return all((one.public, one.zone) in there for one in self.schools if one.lives)

    def _stated(self) -> dict[bytes, tuple[str, str, bytes, bytes]]:
        """Return what the centre has said: id, kind, zone, key and segment."""
        query = (
            'SELECT s.id, s.kind, z.name, s."key", s.segment FROM statement s JOIN zone z ON z.id = s.zone'
            " ORDER BY s.rowid"
        )
        rows = look(self.centre_file).execute(query).fetchall()
        return {bytes(id_): (kind, zone, bytes(key), bytes(of or b"")) for id_, kind, zone, key, of in rows}

    @contextlib.contextmanager
    def _saying(self, name: Name = ("", "")) -> Iterator[None]:
        """Have the model hear what the centre says during the block."""
        self._find_again()
        before = self._stated()
        there = self.model.segments(self.centre_file)
        try:
            yield
        finally:
            for id_, (kind, zone, key, of) in self._stated().items():
                if id_ in before:
                    continue
                here = {one: held for one, held in there.items() if held.zone == zone}
                cut_offs, heads = self.model.ends(here, key) if kind == "revoke" else ({}, {})
                forgotten = frozenset(
                    (of, copy.counter)
                    for copy in (there[of].copies if kind == "redact" else ())
                    if (copy.id.type, copy.id.key) == name
                )
                known = [
                    self.model.said[one].generation
                    for one, (_, *whose, _) in before.items()
                    if whose == [zone, key] and one in self.model.said
                ]
                said = Said(kind, zone, key, max(known, default=0) + 1, cut_offs, heads, name, forgotten)
                self.model.said[id_] = said
                before[id_] = (kind, zone, key, of)

    def forget_what_only_the_cut_off_know(self) -> None:
        """Let go of what the centre said, has forgotten, and only servers know that it does not hear, or that
        had moved to another zone before: the list of that one does not tell them of it.
        """
        self._find_again()
        query = "SELECT s.id, z.name FROM statement s JOIN zone z ON z.id = s.zone"
        while True:
            known = set(self._stated())
            for school in self.schools:
                said_all = school.taken_in == self.faults["restored centres"]
                for id_, zone in look(school.file).execute(query) if school.lives else ():
                    if said_all or zone == school.zone:
                        known.add(bytes(id_))
            silent = set(self.model.said) - known
            if not silent:
                return
            for id_ in silent:
                self.faults["statements lost"] += 1
                del self.model.said[id_]
            self._see_who_lives()

    def _find_again(self) -> None:
        """Have the model know again what was on the line when it was lost on all disks."""
        for id_ in set(self._lost) & set(self._stated()):
            self.model.said[id_] = self._lost.pop(id_)
        self._see_who_lives()

    def _see_who_lives(self) -> None:
        for school in self.schools:
            school.lives = self.model.member(school.zone, school.public).lives

    @contextlib.contextmanager
    def _destroying(self) -> Iterator[None]:
        """Note what is nowhere any more after the block: writes, and what the centre has said."""
        before = self.everywhere()
        yield
        self.model.excused |= before - self.everywhere()
        known = set(self._stated())
        for school in self.schools:
            known |= {bytes(id_) for (id_,) in look(school.file).execute("SELECT id FROM statement")}
        for carrier in self.carriers:
            known |= {hashlib.sha256(data[64:]).digest() for data in carrier.statements}
        for id_ in set(self.model.said) - known:
            self.faults["statements lost"] += 1
            self._lost[id_] = self.model.said.pop(id_)
        self._see_who_lives()

    def do_revoke(self, chance: random.Random) -> None:
        """Cut a school off."""
        living = [one for one in self.schools if one.lives]
        if len(living) < 3:
            return
        school = chance.choice(living)  # it may be in the middle of a sync
        device = hashlib.sha256(school.public)
        # A centre that was restored may not have heard of it yet: its operator cannot name it.
        query = "SELECT 1 FROM device WHERE id = ?"
        if not look(self.centre_file).execute(query, (device.digest(),)).fetchall():
            return

        def work(operator: Zones, session: Any) -> None:
            found = operator.find_device(session, device.hexdigest())
            if found.revoked is None:  # or a centre that was restored knows it from elsewhere
                operator.revoke(session, found, "stolen")

        with self._saying():
            self._operate(work)
        self._see_who_lives()
        self.faults["revocations"] += 1
        self.note("revoke", school.name, school.lives)

    def do_enrol_again(self, chance: random.Random) -> None:
        """Take a school in again that was cut off, with the disk that it has: with its key, or with a new one."""
        cut_off = [one for one in self.idle() if not one.lives and one.public not in self.clones]
        new_key = chance.random() < 0.5
        if not cut_off:
            return
        school = chance.choice(cut_off)
        # A centre that was restored may know nothing of the revocation (yet): to its operator there is no need.
        query = "SELECT 1 FROM device WHERE name = ? AND revoked IS NULL"
        if look(self.centre_file).execute(query, (school.name,)).fetchall():
            return
        if new_key:
            school.key = SigningKey(chance.randbytes(32))
        if self._enrol(school, chance, replaces=False):
            self.faults["enrolled again"] += 1

    def do_new_key(self, chance: random.Random) -> None:
        """A school loses its key, or has it made anew, and keeps its records: its old device is replaced."""
        school = self._some(chance, living=True)
        if school is not None and school.public not in self.clones:
            self._change_key(school, chance)

    def _change_key(self, school: School, chance: random.Random) -> None:
        school.key = SigningKey(chance.randbytes(32))
        if self._enrol(school, chance, replaces=True):
            self.faults["new keys"] += 1

    def do_redact(self, chance: random.Random) -> None:
        """Have all that is known of a record forgotten for good."""
        zone = chance.choice(self.zones)
        names = sorted(state(self.centre_file, zone, self.centre.types))
        if not names or self.machine.runs(self.centre):
            return
        name = chance.choice(names)

        def work(operator: Zones, session: Any) -> None:
            operator.redact(session, operator.zone(session, zone), *name, "asked for")

        with self._saying(name):
            self._operate(work)
        self.faults["redactions"] += 1
        self.note("redact", zone, *name)

    def do_move(self, chance: random.Random) -> None:
        """Move a school to another zone."""
        if (school := self._some(chance, living=True)) is not None and school.public not in self.clones:
            self._move(school, chance)

    def _move(self, school: School, chance: random.Random) -> None:
        """Move a school to the other zone, if there is one; what it has written goes along."""
        if len(self.zones) < 2:
            return
        old, key = school.zone, school.public
        own = {held.log for held in self.model.segments(school.file, old).values() if held.key == key}
        new = next(zone for zone in self.zones if zone != old)
        device = hashlib.sha256(key).digest().hex()

        def work(operator: Zones, session: Any) -> None:
            found = operator.find_device(session, device)
            if found.zone_name == old and found.revoked is None:
                move(operator, session, found, operator.zone(session, new))

        with self._saying():
            self._operate(work)
        if not self.model.member(new, key).lives:
            return
        own |= {school.records.log}
        types = school.process.types
        mine = {
            name: row
            for name, row in state(school.file, old, types).items()
            if row.siblings[0].log in own and row.value is not None
        }
        # What it has of the zone if it comes back: what it kept when it left, and of what it has cut itself also
        # what was cut off since, which it writes anew.
        cut = {bytes(id_) for (id_,) in look(school.file).execute("SELECT id FROM segment WHERE ours > 0")}
        kept = [one for held in self.model.segments(school.file, new).values() for one in held.copies]
        there = self.model.newest(one.id for one in kept if one.segment in cut or self.model.counts(one))
        before = self.everywhere()
        if not self._ask_to_enter(school, chance, ""):
            return
        school.zone = new
        # What it had not sent is in the new zone by its value.
        self.model.excused |= before - self.everywhere()
        school.written &= self.model.on_disk(school.file)
        after = state(school.file, new, types)
        self._note_moved(school, there, after)
        for name, row in mine.items():
            # Of what was redacted in the zone that it comes (back) to, nobody minds that it is not there.
            if (new, *name) in self.model.redacted:
                continue
            # Where somebody else's word is shown, its own is one of those that are in conflict with it.
            words = [after[name].value, *(one.value for one in after[name].siblings)] if name in after else []
            if not any(_includes(value, row.value) for value in words):
                self.violated("I2", f"{school.name} moves and does not take {name} along: {row}")
        self._see_who_lives()
        self.faults["moves"] += 1
        self.note("move", school.name, new)

    def _note_moved(self, school: School, there: dict[Name, set[Id]], after: dict[Name, Any]) -> None:
        """Note what a move has written anew, beside what was there."""
        log = school.records.log
        for name, row in after.items():
            parents = frozenset(there.get(name, ()))
            for one in row.siblings:
                id_ = Id(school.zone, *name, one.at, one.value)
                if name[1] != POISON and one.log == log and id_ not in self.model.writes:
                    self.model.writes[id_] = Write(id_, parents)

    def do_new_school(self, chance: random.Random) -> None:
        """Enrol another school."""
        if len(self.schools) < 12:
            self.new_school(chance)

    # -- carriers --------------------------------------------------------------------------------------------

    def do_load(self, chance: random.Random) -> None:
        """Have a carrier copy segments and statements of a school or of the centre."""
        if not self.carriers:
            return
        carrier = chance.choice(self.carriers)
        places = [self.centre_file, *(one.file for one in self.idle())]
        path = chance.choice(places)
        there = {id_ for id_, _ in carrier.segments}
        db = look(path)
        rows = db.execute("SELECT id, data FROM segment ORDER BY id").fetchall()
        for id_, data in rows:
            if chance.random() < 0.7 and id_ not in there:
                self.model.held(id_, lambda data=data: data)  # type: ignore[misc]
                carrier.segments.append((id_, data))
            elif chance.random() < 0.05:
                carrier.damaged.append(flip(data, chance) if chance.random() < 0.5 else data[: chance.randrange(len(data))])  # fmt: skip
        carrier.statements += [
            bytes(data)
            for (data,) in db.execute("SELECT data FROM statement ORDER BY id").fetchall()
            if chance.random() < 0.5
        ]

    def do_unload(self, chance: random.Random) -> None:
        """Have a carrier give a school some of what he has: again, in any order, damaged, of other zones."""
        school = self._some(chance)
        if not self.carriers or school is None:
            return
        carrier = chance.choice(self.carriers)
        bag = [data for _, data in carrier.segments] + carrier.damaged
        some = chance.sample(bag, chance.randint(0, len(bag)))
        self.faults["carried"] += len(some)
        self.give(school, some + some[:2], carrier.statements[:: chance.choice((1, 2, -1))], chance)

    def give(
        self, school: School, segments: list[bytes], statements: list[bytes], chance: random.Random
    ) -> None:
        """Give a school segments and statements."""
        said = 0
        for data in segments:
            if said < len(statements):
                self._as(school, chance, lambda said=said: school.records.state([statements[said]]))
                said += 1
            self._accept(school, data, chance)
        for one in statements[said:]:
            self._as(school, chance, lambda one=one: school.records.state([one]))

    def _accept(self, school: School, data: bytes, chance: random.Random) -> None:
        try:
            self._as(school, chance, lambda: school.records.accept(data, from_centre=False))
        except (SegmentRefused, StatementRefused):
            self.faults["refused"] += 1

    def do_forge(self, chance: random.Random) -> None:
        """Put into a carrier's bag what a stranger has made: of no device of the zone, in another's name."""
        if not self.carriers or not self.schools:
            return
        school = chance.choice(self.schools)
        entry = Entry("account", chance.choice(self._users), 1, 99, -1, '{"forged":1}')
        stranger = SigningKey(chance.randbytes(32))
        segment = make_segment(stranger, school.zone, 1, 1, bytes(32), [encode_entry(entry)])
        forged = segment.data
        if chance.random() < 0.5:  # with the victim's key in the header, and the stranger's signature
            forged = forged.replace(bytes(stranger.verify_key), school.public)
        chance.choice(self.carriers).damaged.append(forged)
        self.faults["forged"] += 1

    def do_poison(self, chance: random.Random) -> None:
        """Have a device sign, beside its records, an entry that nobody can read."""
        if not self.schools or not self.carriers:
            return
        school = chance.choice(self.schools)
        raw = chance.choice((b"\xc1", b"\x93\xa1x", encode_entry(Entry("account", POISON, 1, 1, 1, "[]"))))
        good = encode_entry(Entry("account", POISON, 1, 1, 1, "{}"))
        segment = make_segment(school.key, school.zone, chance.getrandbits(53), 1, bytes(32), [raw, good])
        chance.choice(self.carriers).segments.append((segment.id, segment.data))
        self.poisoned.setdefault(school.public, set()).add(segment.id)
        self.faults["poison"] += 1

    # -- all that there is -----------------------------------------------------------------------------------

    def everywhere(self) -> set[Id]:
        """Return the writes that are in any place that is not destroyed."""
        found = {copy.id for held in self.model.segments(self.centre_file).values() for copy in held.copies}
        for school in self.schools:
            found |= self.model.on_disk(school.file)
        for carrier in self.carriers:
            for id_, data in carrier.segments:
                found |= {copy.id for copy in self.model.held(id_, lambda data=data: data).copies}  # type: ignore[misc]
        return found

    def copies(self, schools: list[School]) -> list[Copy]:
        """Return every copy of every write that the centre, the carriers or these schools have."""
        segments = dict(self.model.segments(self.centre_file))
        for carrier in self.carriers:
            segments |= {id_: self.model.held(id_, lambda data=data: data) for id_, data in carrier.segments}  # type: ignore[misc]
        tails: list[Copy] = []
        for school in schools:
            segments |= self.model.segments(school.file)
            tails += tail(school.file)
        return [copy for held in segments.values() for copy in held.copies] + tails

    def statements(self, zone: str) -> list[bytes]:
        """Return what the centre has said about a zone, in its order."""
        query = (
            "SELECT s.data FROM statement s JOIN arrival a ON a.id = s.id JOIN zone z ON z.id = s.zone"
            " WHERE z.name = ? ORDER BY a.place"
        )
        db = look(self.centre_file)
        return [bytes(data) for (data,) in db.execute(query, (zone,))]

    def state_of(self, school: School) -> dict[Name, Any]:
        return state(school.file, school.zone, school.process.types)


def _includes(shown: str | None, taken: str | None) -> bool:
    """Return whether what is shown has the fields of what was taken along, or greater numbers."""
    if shown is None or taken is None:
        return taken is None
    now, before = json.loads(shown), json.loads(taken)
    return all(name in now and (now[name] == value or now[name] > value) for name, value in before.items())


_MEANWHILE = (
    "write",
    "write",
    "sync",
    "sync",
    "unload",
    "load",
    "revoke",
    "backup",
    "cut",
    "backup_centre",
    "restore_centre",
)
ACTIONS = {
    "write": 28, "sync": 28, "load": 7, "unload": 7, "cut": 3, "backup": 4, "restore": 3.5, "clone": 1,
    "revoke": 0.8, "replace_disk": 0.6, "new_school": 0.8, "update": 1, "backup_centre": 2.5,
    "restore_centre": 2, "forget_session": 2, "restart_centre": 1, "jump": 3, "late": 4, "hear_again": 1, "forge": 1, "poison": 1,
    "redact": 0.5, "move": 0.8, "enrol_again": 1, "new_key": 0.8, "go_on_alone": 0.5,
}  # fmt: skip
