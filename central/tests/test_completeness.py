"""What the archive has and what it lacks, as a table and as a page."""

from __future__ import annotations

import hashlib
import json
import shutil
import xml.etree.ElementTree as ET

import msgspec
import pytest
from central_school import received
from shala_central.bag import GSTUDIO_ITEMS, BagRefused
from shala_central.commit import restore
from shala_central.completeness import by_state, completeness, grid, page
from shala_central.fleet import Server
from shala_central.integrity import note_damage, repair, scrub
from shala_central.quarantine import discard, quarantine
from shala_central.verify import Damage
from shala_central.versions import version_of

SERVERS = [Server("2031017-mz17", "mz", "127.0.0.1"), Server("3080101-rj1", "rj", "127.0.0.1", "rj-<b>")]


def test_every_server_of_the_fleet_has_its_row_delivered_or_not(centre, school):
    centre.archive.open()
    for number in (1, 2):
        school.sequence = number
        received(
            centre.archive, school, {"gstudio/db/a": bytes([number])}, f"2026-1{number}-01T00:00:00+00:00"
        )
    quarantine(centre.archive, school.name, 3, BagRefused(["bad"]), {})
    one, other = completeness(centre.archive, SERVERS)
    assert (one.sequence, one.months, one.quarantined) == (2, {"2026-11": 1, "2026-12": 1}, 1)
    assert one.items == {"ok": 2, "suspect": 1, "failed": 0, "missing": 12}
    assert (other.sequence, other.months, other.items["ok"]) == (None, {}, 0)
    assert [(row["state"], row["servers"], row["delivered"]) for row in by_state([one, other])] == [
        ("mz", 1, 1),
        ("rj", 1, 0),
    ]


def test_the_grid_is_an_image_and_holds_no_word_of_a_school_unescaped(centre):
    centre.archive.open()
    entries = completeness(centre.archive, SERVERS)
    odd = msgspec.structs.replace(entries[1], name="<script>", months={"2026-11": 4})
    image = ET.fromstring(grid([entries[0], odd], ["2026-11", "2026-12"]))
    assert len(image.findall("{*}rect")) == 4
    assert "<script>" not in page([odd], "made now")


def test_the_grid_marks_who_is_damaged_and_says_why(centre, school):
    archive = centre.archive
    archive.open()
    school.sequence = 1
    received(archive, school, {"gstudio/db/a": b"one"})
    note_damage(archive, {school.name: [Damage("gstudio/db/a", "is missing")]})
    image = ET.fromstring(grid(completeness(archive, SERVERS), ["2026-11"]))
    damaged, other = [text for text in image.findall("{*}text") if text.find("{*}title") is not None]
    assert (damaged.text, damaged.get("fill")) == (f"{school.name} damaged", "#b00020")
    assert "gstudio/db/a is missing" in damaged.find("{*}title").text
    assert (other.text, other.get("fill")) == (SERVERS[1].name, None)


def conditions(centre) -> list[str]:
    return completeness(centre.archive, SERVERS)[0].conditions


def test_whole_is_a_server_of_which_nothing_is_lacking_held_refused_or_damaged(centre, school):
    archive = centre.archive
    archive.open()
    school.items = dict.fromkeys(GSTUDIO_ITEMS, "ok")
    files = {f"gstudio/{name}/a": b"one" for name in GSTUDIO_ITEMS}
    for school.sequence in (1, 2):
        files["gstudio/db/a"] = b"%d" % school.sequence
        received(archive, school, files, f"2026-01-0{school.sequence}T00:00:00+00:00")
    assert conditions(centre) == ["whole"]
    restore(archive, school.name, version_of(archive, school.name, 1), ["gstudio/db"])
    assert conditions(centre) == ["held back"]
    quarantine(archive, school.name, 3, BagRefused(["bad"]), {})
    assert conditions(centre) == ["held back", "refused"]
    discard(archive, school.name)
    restore(archive, school.name, version_of(archive, school.name, 2))
    place = archive.committed(school.name).tree / "gstudio/qbank/a"
    place.chmod(0o640)
    place.write_bytes(b"two")
    found = scrub(archive, 1).damage
    assert found[0].concerns[0] == f"{school.name} gstudio/activity-timestamp-csvs/a"  # the same content
    assert len(found[0].concerns) == 3
    (one, _) = completeness(archive, SERVERS)
    assert one.conditions == ["damaged"]
    assert "has changed" in one.lacks[0]
    (archive.committed(school.name).record / "pull.json").write_bytes(b"{")
    assert conditions(centre) == ["damaged"]


def test_what_is_mended_is_no_more_known_as_damaged(centre, school, tmp_path):
    archive = centre.archive
    archive.open()
    school.sequence = 1
    received(archive, school, {"gstudio/db/a": b"one"})
    note_damage(archive, {school.name: [Damage("gstudio/db/a", "is missing")]})
    assert "damaged" in conditions(centre)
    assert repair(archive, school.name).lost == []
    assert "damaged" not in conditions(centre)


def test_a_record_that_is_gone_is_damage_and_not_a_server_that_never_delivered(centre, school):
    archive = centre.archive
    archive.open()
    school.sequence, school.port = 1, 22
    received(archive, school, {"gstudio/db/a": b"one"})
    centre.schools.append(school)
    shutil.rmtree(archive.hidden / "collections" / school.name)
    assert conditions(centre) == ["damaged"]
    status = centre.shala("archive", "status")
    assert (status.returncode, "its record is damaged" in status.stdout) == (3, True)
    log = centre.shala("archive", "log", school.name)
    assert (log.returncode, "is damaged: it is gone" in log.stderr) == (1, True)


@pytest.mark.parametrize("look", [("verify", "--deep"), ("scrub", "--days", "1")], ids=lambda look: look[0])
def test_a_look_that_reads_less_does_not_clear_what_it_did_not_read(centre, school, look):
    archive = centre.archive
    archive.open()
    school.port = 22
    centre.schools.append(school)
    for number in (1, 2):
        school.sequence = number
        received(archive, school, {"gstudio/db/a": b"%d" % number})
    digest = hashlib.sha256(b"1").hexdigest()
    place = archive.objects.root / school.name / digest[:2] / digest
    place.chmod(0o640)
    place.write_bytes(b"x")
    assert centre.shala("archive", *look).returncode == 1
    assert conditions(centre)[-1] == "damaged"
    assert centre.shala("archive", "verify").returncode == 0
    assert conditions(centre)[-1] == "damaged"
    place.write_bytes(b"1")
    assert centre.shala("archive", "verify", "--deep").returncode == 0
    assert "damaged" not in conditions(centre)


def test_the_page_tells_of_every_server_when_it_was_pulled_and_what_it_lacks(centre, school):
    centre.archive.open()
    school.sequence = 1
    received(centre.archive, school, {"gstudio/db/a": b"one"}, "2026-11-01T04:00:00+00:00")
    text = page(completeness(centre.archive, SERVERS), "made now")
    assert "2026-11-01T04:00" in text
    assert "nginx-logs suspect" in text
    assert "nothing is delivered yet" in text
    assert "3 to 9" in text


@pytest.mark.ssh
def test_the_command_says_who_lacks_what(centre, school, online, another_school, tmp_path):
    online(school).seal({"gstudio/db/a": b"x"})
    centre.schools.append(another_school("3080101-rj1", zone="rj-jaipur"))
    centre.pull()
    done = centre.shala("archive", "status", "--html", str(tmp_path / "status.html"))
    assert done.returncode == 0, done.stderr
    assert "nginx-logs suspect" in done.stdout
    assert "never" in done.stdout
    assert "0 of 2 servers whole" in done.stdout
    assert "2031017-mz17" in (tmp_path / "status.html").read_text()
    assert (tmp_path / "status.html").stat().st_mode & 0o007 == 0
    asked = json.loads(centre.shala("archive", "status", "--json", "--limit", "state_rj").stdout)
    assert [server["name"] for server in asked["servers"]] == ["3080101-rj1"]
    assert centre.shala("archive", "status", "--limit", "state_xx").returncode == 2
