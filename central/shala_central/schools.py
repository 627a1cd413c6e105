"""The schools list: which servers there should be, read from the list that people keep in a spreadsheet.

Reads `Sr. No.;School Name;Full CLIx School Code;Server id` and the further columns zone, address, port and
ring, in any order. Whatever is wrong in it becomes a `Finding` that names file, line, field, value and a way
out; nothing is guessed and nothing is dropped in silence. Never touches the network. The traps it meets are
those of facts/gstudio.md 1.3.
"""

from __future__ import annotations

import csv
import hashlib
import ipaddress
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from shala_central.failure import UsageError

DuplicatePolicy = Literal["error", "first", "skip"]
InvalidPolicy = Literal["error", "skip"]
Severity = Literal["error", "warning"]

BESIDE = ("schools.yml", "schools.yaml")  # what the inventory plugin reads
STATES = ("mz", "rj", "ct", "tg")
ALIASES: Mapping[str, str] = {"cg": "ct", "ts": "tg"}
# Per cent of the servers in each ring: a bad release meets 1 server in 20 first.
RINGS: Mapping[int, int] = {1: 5, 2: 25, 3: 70}

# Column -> the header names it may have; the first is the one of the real list. Compared without case and
# punctuation.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "school_name": ("School Name", "name"),
    "school_code": ("Full CLIx School Code", "School Code", "code"),
    "server_id": ("Server id", "id"),
    "zone": ("zone",),
    "address": ("address", "host", "ip"),
    "port": ("port", "tunnel port", "ssh port"),
    "ring": ("ring",),
}
REQUIRED = ("school_code", "server_id")

MAX_NAME = 200  # characters; the longest school name of the real list has 71
FACTORY_IDS = re.compile(r"^(sp\d*|clix-default)$")
HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decided about the list:
    known states, spellings, and what to do with what is wrong.
    """

    states: Sequence[str] = STATES
    aliases: Mapping[str, str] = field(default_factory=lambda: dict(ALIASES))
    duplicate_ids: DuplicatePolicy = "error"
    invalid: InvalidPolicy = "error"
    codes: Mapping[str, str] = field(
        default_factory=dict
    )  # server id -> school code, where the list has none
    rings: Mapping[int, int] = field(default_factory=lambda: dict(RINGS))  # ring -> per cent of the servers

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with the rules themselves, one line each."""
        for state in self.states:
            if not re.fullmatch(r"[a-z]{2,8}", state):
                yield f"states: '{state}' is not a state code (two to eight lower-case letters)"
        for alias, state in self.aliases.items():
            if state not in self.states:
                known = ", ".join(self.states)
                yield f"aliases: '{alias}' stands for '{state}', which is not one of the states {known}"
        if self.duplicate_ids not in ("error", "first", "skip"):
            yield f"duplicate_ids: '{self.duplicate_ids}' is not one of error, first, skip"
        if self.invalid not in ("error", "skip"):
            yield f"invalid: '{self.invalid}' is not one of error, skip"
        if not self.rings or any(share < 0 or ring < 1 for ring, share in self.rings.items()):
            yield "rings: give each ring (1, 2, ...) its share of the servers in per cent"
        elif sum(self.rings.values()) != 100:
            yield f"rings: the shares add up to {sum(self.rings.values())} per cent, not to 100"


class _Beside(msgspec.Struct, frozen=True):
    """What a schools.yml says of a list; plugins/inventory/schools.py describes it."""

    path: str = "schools.csv"
    states: tuple[str, ...] = STATES
    aliases: dict[str, str] = msgspec.field(default_factory=lambda: dict(ALIASES))
    duplicate_ids: DuplicatePolicy = "error"
    invalid: InvalidPolicy = "error"
    codes: dict[str, str | int] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong in the list, for a person: where it is and what to do about it."""

    file: str
    line: int
    field: str
    value: str
    problem: str
    way_out: str
    severity: Severity

    def __str__(self) -> str:
        """Return the one line that is shown: `schools.csv line 214: server id 'mz17' is already used ...`."""
        where = f"{self.file} line {self.line}" if self.line else self.file
        return f"{where}: {self.field} {quoted(self.value)} {self.problem} ({self.way_out})"


@dataclass(frozen=True, slots=True)
class School:
    """One row that can be used: a school server."""

    line: int
    server_name: str
    state: str
    school_code: str
    server_id: str
    school_name: str
    zone: str
    ring: int
    address: str
    port: int | None

    @property
    def groups(self) -> tuple[str, ...]:
        """Inventory groups of this server, without the one that holds all."""
        zone = (zone_group(self.zone),) if self.zone else ()
        return (f"state_{self.state}", *zone, f"ring_{self.ring}")


@dataclass(frozen=True, slots=True)
class SchoolsList:
    """A list that was read: the servers that can be used and everything that was found on the way."""

    schools: tuple[School, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that the rules do not let pass."""
        return tuple(finding for finding in self.findings if finding.severity == "error")


def read_schools(path: Path, rules: Rules | None = None) -> SchoolsList:
    """Given the path of a schools list and rules, return its servers and findings.

    Raises OSError if the file cannot be read and ValueError if the rules contradict themselves.
    """
    rules = rules or Rules()
    if problems := list(rules.problems()):
        raise ValueError("; ".join(problems))
    return _Reading(path.name, rules).read(path.read_bytes())


def rules_beside(path: Path) -> Rules:
    """Return the rules that the inventory has for a list: of the schools.yml beside it, if that names it.

    Raises UsageError for one that cannot be read.
    """
    beside = next((place for name in BESIDE if (place := path.parent / name).is_file()), None)
    if beside is None:
        return Rules()
    try:
        words = msgspec.yaml.decode(beside.read_bytes(), type=dict[str, object])
        said = {word: value for word, value in words.items() if value is not None}
        told = msgspec.convert(said, _Beside)
    except ImportError:
        raise UsageError(
            f"{beside} cannot be read without PyYAML (pip install pyyaml, or make venv)"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{beside}: {error} (ansible-doc -t inventory schools has the options)") from None
    if told.path != path.name:
        return Rules()
    return Rules(
        states=told.states,
        aliases=told.aliases,
        duplicate_ids=told.duplicate_ids,
        invalid=told.invalid,
        codes={server_id: str(code) for server_id, code in told.codes.items()},
    )


def zone_group(zone: str) -> str:
    """Return the inventory group of a zone: `mz-aizawl` -> `zone_mz_aizawl`."""
    return "zone_" + re.sub(r"[^A-Za-z0-9]", "_", zone)


def ring_of(server_name: str, rings: Mapping[int, int]) -> int:
    """Return the ring of a server by the hash of its name:
    the same one every time, whatever else is in the list.
    """
    place = int.from_bytes(hashlib.sha256(server_name.encode()).digest()[:8], "big") % 100
    for ring in sorted(rings):
        place -= rings[ring]
        if place < 0:
            return ring
    return max(rings)


def address_problem(address: str) -> str:
    """Return why a text is no host name and no IP address, or "" if it is one."""
    try:
        # Behind a '%' (the scope of an IPv6 address) the library lets anything pass, line breaks too.
        ipaddress.ip_address(address.replace("%", "!"))
    except ValueError:
        # A name of digits and dots only is an address with a typing error, not a host name.
        if HOST_NAME.fullmatch(address) and re.search(r"[A-Za-z]", address):
            return ""
        return "is neither a host name nor an IP address"
    return ""


def quoted(value: str) -> str:
    """Return a value as it is shown to a person: quoted, control characters visible, not endless."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value[:80])
    return f"'{shown}{'…' if len(value) > 80 else ''}'"


class _RowRefused(Exception):
    """A row cannot be used: `finding` says why. Stays inside this module."""

    def __init__(self, name: str, value: str, problem: str, way_out: str) -> None:
        super().__init__(problem)
        self.name, self.value, self.problem, self.way_out = name, value, problem, way_out


class _Reading:
    """One pass over one list. Public entry: read_schools."""

    def __init__(self, file: str, rules: Rules) -> None:
        self.file = file
        self.rules = rules
        self.findings: list[Finding] = []
        self.id_lines: dict[str, int] = {}
        self.endpoints: dict[tuple[str, int | None], tuple[int, str]] = {}
        self.code_lines: dict[str, tuple[int, str]] = {}
        self.zones: dict[str, str] = {}
        self.dropped: set[str] = set()

    def read(self, raw: bytes) -> SchoolsList:
        text = self._decode(raw)
        if text is None:
            return SchoolsList((), tuple(self.findings))
        rows = self._rows(text)
        header_line, header = next(rows, (0, []))
        columns = self._columns(header_line, header)
        if columns is None:
            return SchoolsList((), tuple(self.findings))
        schools: list[School] = []
        for line, row in rows:
            try:
                school = self._school(line, row, columns, len(header))
            except _RowRefused as refused:
                self._refuse(line, refused.name, refused.value, refused.problem, refused.way_out)
                continue
            if school is not None:
                schools.append(school)
        if not schools and not self.findings:
            self._refuse(0, "list", self.file, "holds no school", "add a row below the header")
        return SchoolsList(
            tuple(school for school in schools if school.server_id not in self.dropped), tuple(self.findings)
        )

    def _decode(self, raw: bytes) -> str | None:
        if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            self._error(0, "encoding", "UTF-16", "cannot be read", "save the list as CSV UTF-8")
            return None
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            byte = f"\\x{raw[error.start]:02x}"
            self._error(line, "encoding", byte, "is not UTF-8", "save the list as CSV UTF-8")
            return None
        # \r\r\n comes from a CRLF file that was "converted" once more; lone \r from an old Macintosh.
        text = re.sub(r"\r+\n", "\n", text)
        return text if "\n" in text else text.replace("\r", "\n")

    def _rows(self, text: str) -> Iterator[tuple[int, list[str]]]:
        """Yield (line on which the row begins, fields) of every row that is not blank."""
        lines = text.split("\n")
        first = next((line for line in lines if line.strip()), "")
        delimiter = max(";,\t", key=re.sub(r'"[^"]*"', "", first).count)
        reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter)
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                value = lines[min(line, len(lines)) - 1]
                self._refuse(
                    line, "row", value, f"cannot be read: {error}", "write it anew without control characters"
                )
                continue
            if any("\n" in cell for cell in row):
                # Whatever `invalid` says: the rows that it swallowed would be missing without a word.
                way_out = "close the quote mark that was opened in this row"
                self._error(line, "row", row[0], "holds a line break inside a field", way_out)
            if any(cell.strip() for cell in row):
                yield line, [self._stripped(line, cell) for cell in row]

    def _stripped(self, line: int, cell: str) -> str:
        stripped = cell.strip()
        edges = cell.replace(stripped, "", 1) if stripped else ""
        if any(unicodedata.category(c) == "Cc" and c != "\t" for c in edges):
            self._warn(
                line, "field", cell, "ends in a control character", f"it is read as {quoted(stripped)}"
            )
        return stripped

    def _columns(self, line: int, header: list[str]) -> dict[str, int] | None:
        columns: dict[str, int] = {}
        seen: set[str] = set()
        for index, name in enumerate(header):
            for column, names in COLUMNS.items():
                if _plain(name) not in {_plain(known) for known in (*names, column)}:
                    continue
                if column in columns:
                    way_out = "name one of the two columns differently"
                    self._error(line, "header", name, f"is a second column for the {names[0]}", way_out)
                    return None
                columns[column] = index
                seen.add(name)
        for column in REQUIRED:
            if column not in columns:
                found = ", ".join(header) or "nothing"
                problem = f"is not among the columns, which are: {found}"
                self._error(line, "header", COLUMNS[column][0], problem, "the first row names the columns")
                return None
        return columns

    def _school(self, line: int, row: list[str], columns: Mapping[str, int], width: int) -> School | None:
        if any(row[width:]):
            way_out = "put a field that holds the delimiter in double quotes"
            raise _RowRefused("row", ";".join(row), f"has {len(row)} fields, the header has {width}", way_out)
        cells = {name: row[index] if index < len(row) else "" for name, index in columns.items()}
        state, server_id = self._server_id(line, cells["server_id"])
        self._meet_duplicate(line, server_id, cells["server_id"])
        if server_id in self.id_lines:
            return None
        # Before the rest of the row is judged: a row that is refused has used its id all the same.
        self.id_lines[server_id] = line
        school_code = self._school_code(line, cells["school_code"], server_id)
        school_name = self._school_name(cells.get("school_name", ""))
        server_name = f"{school_code}-{server_id}"
        school = School(
            line=line,
            server_name=server_name,
            state=state,
            school_code=school_code,
            server_id=server_id,
            school_name=school_name,
            zone=self._zone(line, cells.get("zone", "")),
            ring=self._ring(cells.get("ring", ""), server_name),
            address=self._address(cells.get("address", "")),
            port=self._port(cells.get("port", "")),
        )
        self._meet_endpoint(school)
        first_line, first_id = self.code_lines.setdefault(school_code, (line, server_id))
        if first_line != line:
            problem = f"is also that of server {first_id} in line {first_line}"
            way_out = "right if the school has two servers, otherwise correct one of them"
            self._warn(line, "school code", school_code, problem, way_out)
        return school

    def _server_id(self, line: int, written: str) -> tuple[str, str]:
        """Return (state, canonical server id) of an id as it stands in the list."""
        if not written:
            raise _RowRefused("server id", written, "is missing", "write it in, or delete the row")
        if written.upper() in ("NA", "N/A", "-", "NONE"):
            raise _RowRefused("server id", written, "stands for none", "write the id in, or delete the row")
        if FACTORY_IDS.match(written.lower()):
            way_out = "give the server an id of its own: its state and a number, e.g. mz17"
            raise _RowRefused("server id", written, "is a factory setting", way_out)
        match = re.fullmatch(r"([a-z]+)([1-9][0-9]*)", written.lower())
        if match is None:
            way_out = "an id is the state's letters and a number without leading zeros, e.g. mz17"
            raise _RowRefused("server id", written, "is not a server id", way_out)
        state = self.rules.aliases.get(match[1], match[1])
        if state not in self.rules.states:
            known = ", ".join(self.rules.states)
            way_out = f"correct it, or add '{match[1]}' to states or aliases"
            raise _RowRefused(
                "server id", written, f"is of an unknown state '{match[1]}' (known: {known})", way_out
            )
        server_id = state + match[2]
        if server_id != written and match[1] == state:
            self._warn(
                line, "server id", written, f"is read as {server_id}", "ids are written in small letters"
            )
        return state, server_id

    def _meet_endpoint(self, school: School) -> None:
        """Refuse a server that would be reached where another one is."""
        if not school.address:
            return
        place = (school.address.lower(), school.port)
        line, other = self.endpoints.setdefault(place, (school.line, school.server_id))
        if line != school.line:
            shown = school.address if school.port is None else f"{school.address}:{school.port}"
            way_out = "give each server its own, or its own tunnel port"
            raise _RowRefused("address", shown, f"is also that of server {other} in line {line}", way_out)

    def _meet_duplicate(self, line: int, server_id: str, written: str) -> None:
        """Apply the duplicate policy to an id that another row has already."""
        if server_id not in self.id_lines:
            return
        policy = self.rules.duplicate_ids
        as_written = f"(written {quoted(written)}) " if written != server_id else ""
        problem = f"{as_written}is already used in line {self.id_lines[server_id]}"
        way_out = {
            "error": "give one of them another id, or set duplicate_ids: first",
            "first": "the first one counts, as duplicate_ids says",
            "skip": "neither counts, as duplicate_ids says",
        }[policy]
        severity: Severity = "error" if policy == "error" else "warning"
        self.findings.append(Finding(self.file, line, "server id", server_id, problem, way_out, severity))
        if policy == "skip":
            self.dropped.add(server_id)

    def _school_code(self, line: int, written: str, server_id: str) -> str:
        if server_id in self.rules.codes:
            written = str(self.rules.codes[server_id])
        way_out = f"write the code of 7 or 8 digits in, or under codes in schools.yml: {server_id}: '2031017'"
        if not written:
            raise _RowRefused("school code", written, f"of server {server_id} is missing", way_out)
        if written.upper() in ("NA", "N/A", "-", "NONE"):
            raise _RowRefused("school code", written, f"of server {server_id} stands for none", way_out)
        if not re.fullmatch(r"[0-9]{7,8}", written) or not written.strip("0"):
            raise _RowRefused(
                "school code", written, f"of server {server_id} is not a code of 7 or 8 digits", way_out
            )
        return _canonical_code(written)

    def _school_name(self, written: str) -> str:
        # Joiners (category Cf) belong to Hindi and Telugu spelling and stay.
        if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in written):
            way_out = "a quote mark in this row or above may never be closed"
            raise _RowRefused(
                "school name", written, "holds a line break or another control character", way_out
            )
        if len(written) > MAX_NAME:
            raise _RowRefused("school name", written, f"is longer than {MAX_NAME} characters", "shorten it")
        return written

    def _zone(self, line: int, written: str) -> str:
        if not written:
            return ""
        if not written.isprintable() or len(written) > 64 or not re.search(r"[A-Za-z0-9]", written):
            raise _RowRefused("zone", written, "is not a zone name", "use up to 64 letters, digits and '-'")
        first = self.zones.setdefault(zone_group(written), written)
        if first != written:
            problem = f"is one group with '{first}': {zone_group(written)}"
            self._warn(line, "zone", written, problem, "spell a zone the same everywhere")
        return first

    def _ring(self, written: str, server_name: str) -> int:
        if not written:
            return ring_of(server_name, self.rules.rings)
        if not re.fullmatch(r"[1-9][0-9]{0,2}", written):
            raise _RowRefused("ring", written, "is not a ring", "a ring is a number from 1 to 999, or empty")
        return int(written)

    def _address(self, written: str) -> str:
        if written and (problem := address_problem(written)):
            raise _RowRefused("address", written, problem, "correct it, or leave it empty")
        return written

    def _port(self, written: str) -> int | None:
        if not written:
            return None
        if not re.fullmatch(r"[0-9]{1,5}", written) or not 1 <= int(written) <= 65535:
            raise _RowRefused(
                "port", written, "is not a port", "a port is a number from 1 to 65535, or empty"
            )
        return int(written)

    def _refuse(self, line: int, name: str, value: str, problem: str, way_out: str) -> None:
        """Note a row that is left out: an error, or a warning where `invalid: skip` lets it pass."""
        if self.rules.invalid == "skip":
            self._warn(line, name, value, problem, f"the row is left out, as invalid: skip says; {way_out}")
        else:
            self._error(line, name, value, problem, f"{way_out}; or set invalid: skip")

    def _error(self, line: int, name: str, value: str, problem: str, way_out: str) -> None:
        self.findings.append(Finding(self.file, line, name, value, problem, way_out, "error"))

    def _warn(self, line: int, name: str, value: str, problem: str, way_out: str) -> None:
        self.findings.append(Finding(self.file, line, name, value, problem, way_out, "warning"))


def _plain(header: str) -> str:
    return re.sub(r"[^a-z0-9]", "", header.lower())


def _canonical_code(code: str) -> str:
    """Return the code without the zero that some lists pad it with: `02031001` -> `2031001`."""
    return code[1:] if len(code) == 8 and code.startswith("0") else code
