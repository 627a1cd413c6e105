"""Restore: bring items of an archived collection back onto a server, its own or a new one.

All of them are looked at first; one damaged file, and nothing is changed. What is replaced is kept aside: a
dump of a database, a file itself. Cut at any instant, the same command goes on: a note says what is half
done, so that it is never taken for what was there before. Who the server is, is never changed.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from shala_agent import durable
from shala_agent.catalogue import FILES, MONGODB, POSTGRESQL, SETTINGS, Item
from shala_agent.collect import identify
from shala_agent.collection import ItemResult
from shala_agent.config import Config
from shala_agent.container import Container
from shala_agent.databases import repair_dumps, wait_for
from shala_agent.extension import read_catalogue
from shala_agent.failure import AgentError, UsageError
from shala_agent.identity import IdentityRefused, read_identity
from shala_agent.ledger import BY_HAND, Ledger, written
from shala_agent.lock import held
from shala_agent.outcome import FAILED, OK, SKIPPED, SUSPECT, Result, counted, failed, judged, shortened
from shala_agent.payload import Damaged, Payload, is_sealed, read_payload
from shala_agent.privacy import SEALED, not_as_it_was
from shala_agent.reach import DATA, STAGING, Reach
from shala_agent.reach import SETTINGS as SERVER_SETTINGS
from shala_agent.restore_databases import (
    SERVERS_OWN,
    keep_mongo,
    keep_postgres,
    learning,
    restore_mongo_database,
    restore_postgres,
    school_users,
)
from shala_agent.restore_files import copy_aside, newer_files, put_back
from shala_agent.restore_note import Note, forget_note, read_note, write_note
from shala_agent.room import MB, free_at

STAGED = f"{STAGING}/restore"  # what is about to go into a database
BEFORE = f"{STAGING}/before-restore"  # what was there before, a folder for each restore
STEP = "restore"  # in the ledger
GSTUDIO = "gstudio"
_BEFORE_THE_CUT = "restored before the cut"
SQL = "pg_dump_all.sql"
# Of a database there are, for a while: what was staged, what was kept aside, and itself.
COPIES = 3

Say = Callable[[str], None]


@dataclass(slots=True)
class Restored:
    """What came of each item; `kept` is the folder with what was there before, "" if nothing was.

    `restart_needed`: of a restored item the platform has read something else when it started.
    """

    items: list[tuple[str, Result]] = field(default_factory=list)
    kept: str = ""
    restart_needed: bool = False

    @property
    def exit_code(self) -> int:
        """0 done, 1 nothing came of it, 3 partly done."""
        bad = sum(result.outcome == FAILED for _, result in self.items)
        good = sum(result.outcome == OK for _, result in self.items)
        return 0 if not bad else 3 if good else 1


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An item that goes back: whole, and in the form that the platform had."""

    item: Item
    source: Path
    files: dict[str, str]
    notes: list[str]

    @property
    def size(self) -> int:
        return sum((self.source / path).stat().st_size for path in self.files)


def restore(
    config: Config,
    folder: Path,
    names: Sequence[str] = (),
    *,
    yes: bool = False,
    wait_seconds: float = 0.0,
    say: Say | None = None,
    tick: Say | None = None,
) -> Restored:
    """Bring items of the collection in a folder back, without names all that can be.

    Raises UsageError, Damaged (nothing was changed), Busy, ContainerUnavailable, and AgentError for a server
    that has data, unless `yes`.
    """
    state = Path(config.paths.state)
    container = Container(config.container.name, state / "locks")
    reach = Reach(config.paths, container, state / "fetched")
    restorer = _Restorer(config, container, reach, say or (lambda _: None), tick or (lambda _: None))
    with held(state / "locks" / "chain.lock", "restore", wait_seconds):
        try:
            return restorer.run(read_payload(folder), names, yes=yes)
        finally:
            reach.forget()


@dataclass(slots=True)
class _Restorer:
    _config: Config
    _container: Container
    _reach: Reach
    _say: Say
    _tick: Say
    _note: Note = field(default_factory=lambda: Note("", ""))

    def run(self, payload: Payload, names: Sequence[str], *, yes: bool) -> Restored:
        done = Restored()
        chosen = self._choose(payload, names, done)
        if not chosen:
            return done
        with self._container.claimed("restore"):
            try:
                self._prepare(chosen)
                self._begin(chosen, yes=yes)
                results = [(one.item.name, self._restored(one)) for one in chosen]
            finally:
                self._remove(STAGED)
        done.items += results
        done.kept = self._kept()
        try:
            done.restart_needed = self._restart_needed(chosen)
            self._write_down(done)
        except Exception:  # all is back: the next one is no longer this restore
            self._end(results)
            raise
        # Last of all: once the note is gone, the same command is another restore.
        self._end(results)
        return done

    # -- what goes back ----------------------------------------------------------------------------------

    def _choose(self, payload: Payload, names: Sequence[str], done: Restored) -> list[_Chosen]:
        """Return what goes back, in the catalogue's order; what does not stands in `done` with its reason."""
        there = payload.items()
        wanted = [_item_of(name, there) for name in names] or there
        known = {item.name: item for item in read_catalogue(self._config).items}
        chosen: list[_Chosen] = []
        # In the catalogue's order: the small and irreplaceable first.
        for platform, name in sorted(set(wanted), key=lambda one: [*known, one[1]].index(one[1])):
            shown = name if platform == GSTUDIO else f"{platform}/{name}"
            item = known.get(name.removesuffix(SEALED)) if platform == GSTUDIO else None
            if item is None or not item.restore:
                why = item.not_restored if item else "it is in no catalogue of this server"
                if names:
                    raise UsageError(f"--item {shown}: it does not go back onto a server: {why}")
                done.items.append((shown, Result(SKIPPED, [f"it does not go back: {why}"])))
                continue
            self._say(f"{shown}: looking at its files ...")
            dumped = item.restore in (POSTGRESQL, MONGODB, SETTINGS)
            files = payload.files(platform, name, item.kind, must_be_whole=dumped)
            said = payload.result(platform, item.name)
            if form := _other_form(name, files, said):
                done.items.append((shown, failed(f"it was not restored: {form}")))
            elif left := self._other_server(item, payload.place(platform, name)):
                done.items.append((shown, Result(SKIPPED, [left])))
            else:
                chosen.append(_Chosen(item, payload.place(platform, name), files, _labels(said)))
        return chosen

    def _other_server(self, item: Item, source: Path) -> str:
        """Return why settings that say who a server is are left as they are, "" where they are its own."""
        if not any(path == SERVER_SETTINGS for _, path in item.parts):
            return ""
        ours = self._config.identity.server_name
        try:
            ours = ours or identify(self._config, self._reach).server_name
            states, aliases = self._config.identity.states, self._config.identity.aliases
            theirs = read_identity(
                source.read_text(encoding="utf-8"), str(source), states, aliases
            ).server_name
        except (IdentityRefused, UnicodeDecodeError) as error:
            return f"left as it is: {error}"
        if theirs == ours:
            return ""
        return f"left as it is: the collection is of {theirs}, this server is {ours} and stays so"

    # -- before anything is changed ----------------------------------------------------------------------

    def _prepare(self, chosen: Sequence[_Chosen]) -> None:
        """See that there is room and that the container has the folders that we write to."""
        for one in chosen:
            for place, _ in self._places(one):
                self._host(place)
        data = self._host(DATA)
        if not data.is_dir():
            raise AgentError(f"{data} does not exist (is the platform there? playbooks/provision.yml)")
        needed = COPIES * sum(one.size for one in chosen if one.item.restore in (POSTGRESQL, MONGODB))
        if (free := free_at(data)) < needed:
            raise AgentError(
                f"{data}: {free // MB} MB are free, the databases need {needed // MB} MB for a while"
                " (free some space, then run this again)"
            )
        self._remove(STAGED)
        self._host(STAGED).mkdir(parents=True, mode=0o700)
        if self._container.run(["test", "-d", STAGED], timeout_seconds=30).exit_code != 0:
            raise AgentError(
                f"{data} is not {DATA} of the container (set paths.data in /etc/shala/agent.toml)"
            )
        repair_dumps(self._container)

    def _begin(self, chosen: Sequence[_Chosen], *, yes: bool) -> None:
        """Note what is begun, unless the server has data of its own; a restore that was cut goes on."""
        digest = _digest(chosen)
        note = read_note(self._state)
        container = self._container.state().id
        if note is None or not note.goes_on(digest, container):
            if not yes and (data := self._has_data(chosen)):
                raise AgentError(f"{data} (--yes replaces it; what is there now is kept aside)")
            half = note.half_done if note is not None else []
            begun = datetime.datetime.now(datetime.timezone.utc)
            note = Note(
                digest,
                self._unused_folder(begun),
                half,
                container=container,
                begun=begun,
                half_before=list(half),
            )
        self._note = note
        write_note(self._state, note)

    def _unused_folder(self, begun: datetime.datetime) -> str:
        """Return a folder for what was there before, in which no other restore has kept anything.

        The second alone does not tell them apart: two may begin in one, and clocks go back.
        """
        name = f"{BEFORE}/{written(begun).replace(':', '')}"
        for number in itertools.count(1):
            note = Note("", f"{name}-{number}" if number > 1 else name)
            if not any(self._host(folder).exists() for folder in (note.kept, note.kept_half)):
                break
        return note.kept

    def _end(self, results: Sequence[tuple[str, Result]]) -> None:
        """Forget what was noted, but not of what is half done: by a failure, or by another restore."""
        if any(result.outcome == FAILED for _, result in results):
            return
        if self._note.half_done:
            write_note(self._state, msgspec.structs.replace(self._note, digest=""))
        else:
            forget_note(self._state)

    def _has_data(self, chosen: Sequence[_Chosen]) -> str:
        """Return what this server holds that a new one does not, "" if it is like new."""
        for database in ("postgres", "mongo"):
            if problem := wait_for(self._container, database):
                return f"whether this server has data cannot be told, {database}: {problem}"
        dump = keep_postgres(self._container, self._reach, f"{STAGED}/look.sql", self._timeout)
        users, deeds = school_users(dump), learning(self._container)
        dump.unlink()
        if deeds is None:
            return "whether this server has data cannot be told: MongoDB cannot be asked"
        # Settings are written by the installation of a new server.
        newer = sum(
            newer_files(one.source / folder, files, self._host(place))
            for one in chosen
            if one.item.restore == FILES
            for place, folder, files in self._parts(one)
        )
        if not users and not deeds and not newer:
            return ""
        return (
            f"this server has data: {counted(users, 'user')} of a school,"
            f" {counted(deeds, 'document')} of what they did,"
            f" {counted(newer, 'file')} newer than the collection's"
        )

    # -- each kind ---------------------------------------------------------------------------------------

    def _restored(self, one: _Chosen) -> Result:
        deeds = {POSTGRESQL: self._postgres, MONGODB: self._mongo, FILES: self._files, SETTINGS: self._files}
        name = one.item.name
        self._say(f"{name} ...")
        try:
            result = deeds[one.item.restore](one)
        except OSError as error:
            result = failed(f"{error.filename or name}: {error.strerror or error} (run this again)")
        except AgentError as error:
            result = failed(str(error))
        result.reasons = shortened([*result.reasons, *one.notes])
        self._say(f"{name}: {result.outcome}")
        return result

    def _postgres(self, one: _Chosen) -> Result:
        if one.item.name in self._note.done:
            return judged([], [_BEFORE_THE_CUT])
        if SQL not in one.files:
            return failed(f"there is no {SQL} in it")
        if problem := wait_for(self._container, "postgres"):
            return failed(f"PostgreSQL: {problem}")
        copy_aside(one.source, one.files, self._host(f"{STAGED}/postgres"))
        folders = (self._note.kept_half, self._note.kept)

        def put() -> Result:
            former = [kept for folder in folders if (kept := self._host(f"{folder}/{SQL}")).is_file()]
            staged = f"{STAGED}/postgres/{SQL}"
            return restore_postgres(self._container, self._reach, staged, self._timeout, former)

        return self._replaced(one.item.name, put, self._keep_postgres)

    def _mongo(self, one: _Chosen) -> Result:
        if problem := wait_for(self._container, "mongo"):
            return failed(f"MongoDB: {problem}")
        databases = sorted({path.partition("/")[0] for path in one.files})
        allowed = self._config.databases.mongo
        if odd := [name for name in databases if name not in allowed or name in SERVERS_OWN]:
            return failed(f"it holds '{odd[0][:80]}', which is not among databases.mongo of this server")
        results = []
        for database in databases:
            name = f"{one.item.name}/{database}"
            if name in self._note.done:
                results.append(judged([], [f"{database}: {_BEFORE_THE_CUT}"]))
                continue
            self._tick(database)
            inside = len(database) + 1
            files = {
                path[inside:]: digest for path, digest in one.files.items() if path.startswith(f"{database}/")
            }
            staged = f"{STAGED}/{database}"
            copy_aside(one.source / database, files, self._host(staged))
            put = functools.partial(
                restore_mongo_database, self._container, self._reach, database, staged, self._timeout
            )
            results.append(self._replaced(name, put, functools.partial(self._keep_mongo, database)))
        reasons = [reason for result in results for reason in result.reasons]
        if any(result.outcome == FAILED for result in results):
            return failed(*reasons)
        documents = sum(int(result.detail.get("documents", 0)) for result in results)
        said = f"{counted(documents, 'document')} in {counted(len(databases), 'database')}"
        return judged([], [said, *reasons], {"documents": documents})

    def _replaced(self, name: str, put: Callable[[], Result], keep: Callable[[str], None]) -> Result:
        """Keep aside what a database holds, unless it is half of what is restored here; then replace it."""
        note = self._note
        if name not in note.half_done or name in note.half_before:
            folder = note.kept_half if name in note.half_before else note.kept
            self._host(folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            keep(folder)
            # Whole on the disk before it is noted that nothing of it need be kept any more.
            durable.sync_filesystem(self._host(DATA))
            note.half_done = sorted({*note.half_done, name})
            note.half_before = [one for one in note.half_before if one != name]
            write_note(self._state, note)
        result = put()
        if result.outcome != FAILED:
            note.half_done.remove(name)
            note.done.append(name)
            write_note(self._state, note)
        elif kept := self._kept():
            result.reasons.append(f"what was there before is in {kept}")
        return result

    def _kept(self) -> str:
        """Return where there is what was there before, "" if nothing was."""
        folders = (self._host(self._note.kept), self._host(self._note.kept_half))
        return " and ".join(str(folder) for folder in folders if folder.is_dir())

    def _keep_postgres(self, folder: str) -> None:
        keep_postgres(self._container, self._reach, f"{folder}/{SQL}", self._timeout)

    def _keep_mongo(self, database: str, folder: str) -> None:
        durable.remove(self._host(f"{folder}/db/{database}"))  # of a run that was cut
        keep_mongo(self._container, self._reach, database, f"{folder}/db", self._timeout)

    def _files(self, one: _Chosen) -> Result:
        written = same = 0
        for place, folder, files in self._parts(one):
            done = put_back(
                one.source / folder,
                files,
                self._host(place),
                self._host(f"{self._note.kept}/files/{one.item.name}") / folder,
                tick=lambda count: self._tick(str(count)),
            )
            written, same = written + done.written, same + done.same
        notes = [f"{counted(written, 'file')} written" + (f", {same} there already" if same else "")]
        if one.item.restore == SETTINGS and written:
            notes.append(f"it is read when the container starts: docker restart {self._container.name}")
        return judged([], notes, {"written": written, "same": same})

    def _parts(self, one: _Chosen) -> Iterator[tuple[str, str, dict[str, str]]]:
        """Yield (path in the container, folder of the item, {path in that folder: sha256})."""
        for place, folder in self._places(one):
            inside = len(folder) + 1 if folder else 0
            files = {
                path[inside:]: digest
                for path, digest in one.files.items()
                if not folder or path.startswith(f"{folder}/")
            }
            if files:
                yield place, folder, files

    def _restart_needed(self, chosen: Sequence[_Chosen]) -> bool:
        """Return whether settings are newer than the container's start, whichever run has written them."""
        started = self._container.state().started
        since = datetime.datetime.fromisoformat(f"{started[:19]}+00:00").timestamp() if started else 0.0
        places = [
            self._host(path) for one in chosen if one.item.restore == SETTINGS for _, path in one.item.parts
        ]
        return any(place.stat().st_ctime >= since for place in places if place.exists())

    def _places(self, one: _Chosen) -> list[tuple[str, str]]:
        """Return (path in the container, folder of the item). Raises AgentError for files of no place."""
        if one.item.restore not in (FILES, SETTINGS):
            return []
        places = [(path, folder) for folder, path in one.item.parts]
        for path in one.files:
            if not any(not folder or path.startswith(f"{folder}/") for _, folder in places):
                raise Damaged(f"{one.item.name}/{path} lies where the catalogue has nothing of the item")
        return places

    # -- what is written down ----------------------------------------------------------------------------

    @property
    def _timeout(self) -> float:
        return self._config.databases.timeout_minutes * 60.0

    @property
    def _state(self) -> Path:
        return Path(self._config.paths.state)

    def _host(self, path: str) -> Path:
        """Return where a path of the container is on the host. Raises AgentError where it is not."""
        host = self._reach.host(path)
        if host is None:
            raise AgentError(
                f"{path} of the container lies on no folder of this machine (set [paths] in"
                " /etc/shala/agent.toml, or run playbooks/provision.yml)"
            )
        return host

    def _remove(self, path: str) -> None:
        durable.remove(self._host(path))

    def _write_down(self, done: Restored) -> None:
        reasons = [
            f"{name}: {reason}"
            for name, result in done.items
            if result.outcome == FAILED
            for reason in result.reasons[:2]
        ]
        ledger = Ledger(Path(self._config.paths.state) / "ledger.sqlite")
        try:
            run = ledger.start(BY_HAND)
            ledger.finish(run, STEP, Result(FAILED if reasons else OK, shortened(reasons)))
            ledger.end(run, "partly" if done.exit_code else "done")
        finally:
            ledger.close()


def _item_of(name: str, there: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """Return (platform, name) of what an operator calls `db` or `gstudio/db`. Raises UsageError."""
    platform, _, rest = name.rpartition("/")
    one = (platform or GSTUDIO, rest)
    if one not in there:
        known = ", ".join(item if of == GSTUDIO else f"{of}/{item}" for of, item in there)
        raise UsageError(f"--item {name}: the collection has no such item (it has: {known})")
    return one


def _other_form(name: str, files: Mapping[str, str], said: ItemResult | None) -> str:
    """Return why an item is not what the platform had, "" if it is."""
    if sealed := is_sealed(files, name):
        return f"{sealed} is sealed, only the owner of the key can open it"
    return not_as_it_was(said.policy) if said is not None else ""


def _labels(said: ItemResult | None) -> list[str]:
    if said is None or said.outcome not in (FAILED, SUSPECT):
        return []
    return [f"in the collection it is {said.outcome}: {'; '.join(said.reasons[:2])}"]


def _digest(chosen: Sequence[_Chosen]) -> str:
    """Return a word for exactly these files."""
    digest = hashlib.sha256()
    for one in chosen:
        for path in sorted(one.files):
            digest.update(f"{one.item.name}/{path} {one.files[path]}\n".encode())
    return digest.hexdigest()
