"""What the archive has and what it lacks, as a table and as a page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import msgspec
import pytest
from central_school import received
from shala_central.bag import BagRefused
from shala_central.completeness import by_state, completeness, grid, page
from shala_central.fleet import Server

SERVERS = [Server("2031017-mz17", "mz", "127.0.0.1"), Server("3080101-rj1", "rj", "127.0.0.1", "rj-<b>")]


def test_every_server_of_the_fleet_has_its_row_delivered_or_not(centre, school):
    centre.archive.open()
    for number in (1, 2):
        school.sequence = number
        received(
            centre.archive, school, {"gstudio/db/a": bytes([number])}, f"2026-1{number}-01T00:00:00+00:00"
        )
    centre.archive.quarantine(school.name, 3, BagRefused(["bad"]), {})
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
    asked = json.loads(centre.shala("archive", "status", "--json", "--limit", "state_rj").stdout)
    assert [server["name"] for server in asked["servers"]] == ["3080101-rj1"]
    assert centre.shala("archive", "status", "--limit", "state_xx").returncode == 2
