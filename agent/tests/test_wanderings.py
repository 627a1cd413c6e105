"""Wanderings: whatever becomes of a server's key, zone, epoch and disk, what it wrote is where it belongs."""

from __future__ import annotations

import random
import sqlite3
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from shala_agent import records as records_module
from shala_agent.membership import Statement, sign_statement
from shala_agent.records import Change, Records
from shala_agent.segment import read_segment
from shala_agent.store import Store

CENTRE = SigningKey(bytes(32))
ALL = 1 << 20


class Zone:
    """One zone at the centre: its store, and the list of what arrived."""

    def __init__(self, name: str) -> None:
        db = sqlite3.connect(":memory:", isolation_level=None)
        db.executescript(records_module._SCHEMA)
        db.execute("INSERT INTO zone (name, centre) VALUES (?, ?)", (name, bytes(CENTRE.verify_key)))
        self.name = name
        self.store = Store(records_module._Sqlite(db), 1, name, bytes(CENTRE.verify_key))
        self.arrivals: list[bytes] = []  # statements, and ids of segments

    def say(self, kind: str, key: SigningKey, **more) -> None:
        public = bytes(key.verify_key)
        member = self.store.member(public)
        said = Statement(
            format=1,
            kind=kind,
            zone=self.name,
            key=public.hex(),
            generation=max(member.enrolled, member.revoked) + 1,
            **more,
        )
        data = sign_statement(CENTRE, said)
        self.store.state(data)
        self.arrivals.append(data)

    def revoke(self, key: SigningKey) -> None:
        """Cut a device off at what is here of it."""
        rows = self.store.database.query(
            'SELECT log, id, "last", previous FROM segment WHERE "key" = ? AND held IS NULL',
            (bytes(key.verify_key),),
        )
        continued = {previous for *_, previous in rows}
        cut_offs: dict[str, int] = {}
        heads: dict[str, list[str]] = {}
        for log, id_, last, _ in rows:
            cut_offs[log.hex()] = max(last, cut_offs.get(log.hex(), 0))
            if id_ not in continued:
                heads.setdefault(log.hex(), []).append(id_.hex())
        self.say("revoke", key, cut_offs=cut_offs, heads=heads)

    def take(self, data: bytes) -> None:
        segment = read_segment(data)
        if not self.store.has(segment.id):
            self.store.accept(segment)
            self.arrivals.append(segment.id)


@dataclass
class Server:
    """A server; its zone and key are what the centre knows, its records may not know of it yet."""

    records: Records
    key: SigningKey
    zone: Zone
    place: int = 0
    visits: dict[str, int] = field(default_factory=dict)  # all that it ever wrote: key and time

    def hear(self) -> None:
        """Have it enter the zone that it is in now, with the key that it has now."""
        store, public = self.records.store, bytes(self.key.verify_key)
        if store is None or (store.name, store.own) != (self.zone.name, public):
            if store is None or store.name != self.zone.name:
                self.place = 0
            told = [data for data in self.zone.arrivals if public.hex().encode() in data]
            self.records.enrol(self.zone.name, bytes(CENTRE.verify_key), public, told)

    def upload(self, limit: int) -> None:
        self.hear()
        member = self.zone.store.member(bytes(self.key.verify_key))
        if not member.lives:
            return
        self.records.cut(self.key)
        if self.records.log in member.cut_offs:
            self.records.renew()  # the centre takes it for a fork
            self.records.cut(self.key)
        for offer in self.records.offers(limit):
            self.zone.take(self.records.store.data(offer.id))
            self.records.set_at_centre([offer.id])

    def download(self, limit: int) -> None:
        self.hear()
        if not self.zone.store.member(bytes(self.key.verify_key)).lives:
            return
        for arrived in self.zone.arrivals[self.place : self.place + limit]:
            if len(arrived) > 32:
                self.records.state([arrived])
            elif not self.records.store.has(arrived):
                self.records.accept(self.zone.store.data(arrived), from_centre=True)
            self.place += 1

    def learn(self, chance: random.Random, names: count[int]) -> None:
        user, at = f"user{chance.randrange(4)}", chance.randrange(1000)
        visit = f"{user}/{next(names)}"
        changes = [Change("account", user, {"n": next(names)}), Change("activity", visit, {})]
        self.records.write(changes, at)
        self.visits[visit] = at
        if chance.random() < 0.5:
            self.records.cut(self.key)

    def everything(self) -> list[object]:
        return list(self.records.records(everything=True))


def wander(chance: random.Random, folder: Path) -> tuple[list[Zone], list[Server]]:
    """Let servers write and sync while they are revoked, moved, copied and given new keys."""
    zones, names = [Zone("mz"), Zone("rj")], count()
    servers: list[Server] = []
    for number in range(4):
        key, zone = SigningKey(chance.randbytes(32)), chance.choice(zones)
        zone.say("enrol", key)
        servers.append(Server(Records(folder / f"{number}.sqlite"), key, zone))
        servers[-1].hear()
    for step in range(chance.randint(10, 50)):
        server = chance.choice(servers)
        sharers = [one for one in servers if one.key == server.key]
        what = chance.choice("wwwwwwuudddexkrmmc")
        if what == "w":
            server.learn(chance, names)
        elif what == "u":
            server.upload(chance.choice([1, 2, ALL]))
        elif what == "d":
            server.download(chance.choice([1, 3, ALL]))
        elif what == "e":
            server.records.renew()
        elif what == "x":
            server.zone.revoke(server.key)
        elif what == "r":
            server.zone.say("enrol", server.key)
        elif what == "k":
            if chance.random() < 0.7:
                server.zone.revoke(server.key)
            server.key = SigningKey(chance.randbytes(32))
            server.zone.say("enrol", server.key)
        elif what == "m":
            server.zone.revoke(server.key)
            other = zones[1 - zones.index(server.zone)]
            other.say("enrol", server.key)
            for one in sharers:
                one.zone = other
        elif what == "c" and len(servers) < 6:
            path = folder / f"copy{step}.sqlite"
            with sqlite3.connect(folder / _file(server)) as db:
                db.execute("VACUUM INTO ?", (str(path),))
            copy = Server(Records(path), server.key, server.zone, server.place, dict(server.visits))
            servers.append(copy)
    return zones, servers


def _file(server: Server) -> str:
    rows = server.records.store.database.query("PRAGMA database_list")
    return next(Path(file).name for _, name, file in rows if name == "main")


@pytest.mark.parametrize("seed", range(12))
def test_wherever_a_server_gets_to_what_it_wrote_is_with_it(seed: int, tmp_path: Path):
    zones, servers = wander(random.Random(seed), tmp_path)
    for server in servers:
        if not server.zone.store.member(bytes(server.key.verify_key)).lives:
            server.zone.say("enrol", server.key)
    for _ in range(4):
        for server in servers:
            server.upload(ALL)
            server.download(ALL)
    for zone in zones:
        said = list(zone.store.tables.records(everything=True))
        for server in servers:
            if server.zone is zone:
                assert server.everything() == said
                here = {one.key: one.at for one in said if one.type == "activity"}
                assert server.visits.items() <= here.items()
                server.records.store.rebuild()
                assert server.everything() == said  # kept up is what it would be if made anew
