"""README's table holds what examples/bench.json says, and the command that README names made it."""

import re
import tomllib
from pathlib import Path

import pytest

from udedup.bench import table
from udedup.bench.results import Report
from udedup.bench.summary import summarize

ROOT = Path(__file__).parents[2]
COLUMNS = {
    "memory, of `none`": ("x_total", table.percent),
    "99 % of the saving after, s": ("time_99_s", table.seconds),
    "of KSM's": ("k_time_99_s", table.times),
    "engine CPU to there, s": ("cpu_99_s", table.seconds),
    "of ksmd's": ("k_cpu_99_s", table.times),
    "application, of `none`": ("x_rate_settled", table.percent),
}


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text().partition("## Benchmarks")[2].partition("\n## ")[0]


@pytest.fixture(scope="module")
def report() -> Report:
    return Report.load(ROOT / "examples" / "bench.json")


def test_extras_that_the_bench_needs_are_named(readme):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"'\.\[(\w+)\]'", readme)
    assert {"bench", "plot"} <= set(named) <= declared.keys()


def test_each_figure_of_readme_is_in_the_json(readme, report):
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in readme.splitlines()
        if line[:1] == "|"
    ]
    head, _, *body = lines
    rows = {(row.workload, row.engine): row for row in summarize(report)}
    shown = {line[0] for line in body}
    assert {"arrays", "imports"} <= shown
    assert {tuple(line[:2]) for line in body} == {
        key for key in rows if key[1] != "none" and key[0] in shown
    }, "of a pool that is shown, every engine is"
    for pool, engine, *figures in body:
        row = rows[pool, engine]
        for heading, figure in zip(head[2:], figures, strict=True):
            name, form = COLUMNS[heading]
            assert figure == table.cell_text(row.figures.get(name), form, row.repeats), (
                pool,
                engine,
                heading,
            )


def test_the_command_is_the_one_that_made_it(readme, report):
    commands = re.findall(r"^    (udedup bench .*)$", readme, re.MULTILINE)
    assert report.command in commands
    assert report.complete
