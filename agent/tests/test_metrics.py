from __future__ import annotations

import re

import msgspec
import pytest
from agent_school import School
from click.testing import CliRunner
from shala_agent import chain as chain_module
from shala_agent import cli
from shala_agent.metrics import METRICS, Figure, figures, text
from shala_agent.status import read_status

SAMPLE = re.compile(r'([a-z_]+)(\{([a-z]+="([^"\\\n]|\\["\\n])*",?)+\})? (-?[0-9.e+]+)')


def parsed(document: str) -> dict[str, float]:
    """Return the samples of a file in the text format, as strictly as Prometheus reads it."""
    samples: dict[str, float] = {}
    families: list[str] = []
    assert document.endswith("\n")
    for line in document.splitlines():
        if line.startswith("# HELP "):
            families.append(line.split()[2])
        elif line.startswith("# TYPE "):
            assert line == f"# TYPE {families[-1]} gauge"
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] == families[-1]
            name = line.rpartition(" ")[0]
            assert name not in samples
            samples[name] = float(match[5])
    assert len(families) == len(set(families))
    return samples


@pytest.fixture
def measured(school: School, monkeypatch) -> School:
    """A school whose configuration names a file for the figures."""
    text_ = school.config_path.read_text() + f'[metrics]\nfile = "{school.root}/shala.prom"\n'
    school.config_path.write_text(text_)
    monkeypatch.setattr(chain_module, "Container", lambda *_: school.container)
    return school


def ran(school: School, *arguments: str) -> int:
    return CliRunner().invoke(cli.shala_agent, ["--config", str(school.config_path), *arguments]).exit_code


def test_after_a_chain_the_figures_are_there_for_everybody(measured: School):
    ran(measured, "run")
    file = measured.root / "shala.prom"
    assert file.stat().st_mode & 0o777 == 0o644
    samples = parsed(file.read_text())
    assert samples['shala_item_outcome{item="gstudio/media",outcome="ok"}'] == 1
    assert samples['shala_item_outcome{item="gstudio/media",outcome="failed"}'] == 0
    assert samples['shala_step_outcome{step="postgres-dump",outcome="failed"}'] == 1
    assert samples["shala_collection_sequence"] == 1
    assert samples["shala_chain_open"] == 0
    assert samples["shala_container_running"] == 1
    assert samples['shala_agent_info{server="2031017-mz17",version="0.1.0"}'] == 1


def test_without_a_file_nothing_is_written_and_nothing_fails(school: School, monkeypatch):
    monkeypatch.setattr(chain_module, "Container", lambda *_: school.container)
    assert ran(school, "collect", "--without-dumps") == 0
    assert not list(school.root.glob("*.prom"))


def test_figures_that_cannot_be_written_cost_only_themselves(measured: School):
    (measured.root / "shala.prom").mkdir()
    assert ran(measured, "collect", "--without-dumps") == 0
    assert measured.spool.head() is not None


def test_names_from_outside_cannot_break_the_file(school: School):
    samples = parsed(text(iter([Figure("shala_item_files", 1, {"item": 'a"b\\c\nd'})])))
    assert list(samples) == ['shala_item_files{item="a\\"b\\\\c\\nd"}']


def test_unplatform_is_one_item_however_many_names_somebody_gives_there(school: School):
    for name in ("lesson", "zodin 9862012345"):
        school.write(f"unplatform/{name}/data.json", "{}")
    paths = msgspec.structs.replace(school.config.paths, unplatform=str(school.root / "unplatform"))
    school.config = msgspec.structs.replace(school.config, paths=paths)
    school.collect()
    samples = parsed(text(figures(school.config, read_status(school.config, school.ledger()))))
    assert samples['shala_item_files{item="unplatform"}'] == 2
    assert samples['shala_item_outcome{item="unplatform",outcome="ok"}'] == 1
    assert not [name for name in samples if "zodin" in name]


def test_every_metric_is_described_for_the_operator(school: School, request):
    guide = (request.config.rootpath / "docs/operator.md").read_text()
    assert [name for name in METRICS if f"`{name}`" not in guide] == []


def test_no_figure_names_a_pupil(school: School):
    school.collect()
    document = text(figures(school.config, read_status(school.config, school.ledger())))
    assert "blue-bat" not in document
    assert "shala_item_files" in document
