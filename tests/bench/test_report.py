"""From cells to tables: ratios, failures without figures, and everything again from the JSON."""

import io

import pytest
from rich.console import Console

from udedup.bench import plot, table
from udedup.bench.matrix import Plan, judge_results, order
from udedup.bench.results import FAILED, SKIPPED, Cell, Report
from udedup.bench.summary import summarize
from udedup.errors import UdedupError

MIB = 1 << 20


def cell(engine: str, total: int, repeat: int = 0, **more: object) -> Cell:
    timeline = {
        "t": [0, 1.0, 2.0],
        "pss": [1000 * MIB, total * MIB, total * MIB],
        "store_unmapped": [0, 0, 0],
    }
    timeline |= {"uss": [1, 1, 1], "rss": [1, 1, 1], "cpu": [0, 0.5, 0.9]}
    before = {"pss": 1000 * MIB, "slab": 0}
    final = {"pss": total * MIB, "store_unmapped": 0, "slab": 0, "uss": total * MIB}
    fields = {"before": before, "final": final, "timeline": timeline, "checks": ["a", "b"], **more}
    return Cell("arrays", engine, repeat, **fields)


def report(*cells: Cell) -> Report:
    machine = {"cores": 2, "cpu": "test", "memory_bytes": 1 << 30, "kernel": "6.1.2"}
    return Report("udedup bench arrays", "2026-01-01T00:00:00", machine, list(cells), complete=True)


def printed(found: Report) -> str:
    console = Console(file=io.StringIO(), width=200)
    table.print_report(found, console)
    return console.file.getvalue()


def test_ratios_are_to_the_median_of_none():
    cells = [cell("none", 1000, 0), cell("none", 900, 1), cell("none", 1100, 2)]
    cells += [cell("ksm", 300, 0), cell("ksm", 250, 1), cell("ksm", 310, 2)]
    none, ksm = summarize(report(*cells))
    assert none.median("x_total") == 1.0
    assert (ksm.figures["x_total"].min, ksm.median("x_total"), ksm.figures["x_total"].max) == (
        0.25,
        0.3,
        0.31,
    )


def test_a_failed_repeat_takes_all_figures_of_its_engine_away():
    bad = cell("ksm", 10, 1, status=FAILED, reason="results of worker 0 differ")
    found = report(cell("none", 1000), cell("ksm", 300, 0), bad)
    row = summarize(found)[1]
    assert row.failed
    assert row.figures == {}
    text = printed(found)
    assert "FAILED" in text
    assert "results of worker 0 differ" in text
    assert "30 %" not in text
    assert "700" not in text  # nor what it would have saved
    assert "| ksm | FAILED" in table.markdown(found)


def test_a_failed_reference_takes_all_ratios_away():
    bad = cell("none", 1000, 1, status=FAILED, reason="killed")
    none, udedup = summarize(report(cell("none", 1000), bad, cell("udedup", 300)))
    assert none.figures == {}
    assert "total" in udedup.figures
    assert not {"x_total", "saved", "net", "of_possible"} & udedup.figures.keys()


def test_what_was_saved_is_of_none_and_pays_for_the_engine():
    """An engine that makes the workers larger before it merges anything has not saved that."""
    larger = cell("udedup", 300, possible=800 * MIB)
    larger.before["pss"] = 1200 * MIB
    larger.final["engine_pss"] = 20 * MIB
    row = summarize(report(cell("none", 1000), larger))[1]
    assert row.median("saved") == 700 * MIB
    assert row.median("net") == 680 * MIB
    assert row.median("of_possible") == 0.875


def test_ratios_to_kernel_ksm_are_to_the_shared_layout_first():
    cells = [cell("none", 1000)]
    cells.append(cell("ksm", 900, time_99_s=9.0, cpu_99_s=4.0, idle={"cpu_cheapest_pass_s": 0.9}))
    cells.append(cell("layout+ksm", 250, time_99_s=4.0, cpu_99_s=2.0, idle={"cpu_cheapest_pass_s": 0.08}))
    cells.append(cell("udedup", 300, time_99_s=1.0, cpu_99_s=0.5, idle={"cpu_per_pass_s": 0.01}))
    rows = {row.engine: row for row in summarize(report(*cells))}
    assert rows["udedup"].rival == "layout+ksm"
    wanted = {"k_total": 1.2, "k_time_99_s": 0.25, "k_cpu_99_s": 0.25, "k_idle_least_s": 0.125}
    assert {name: rows["udedup"].median(name) for name in wanted} == pytest.approx(wanted)
    assert not any(
        name.startswith("k_") for row in rows.values() if row.engine != "udedup" for name in row.figures
    )
    assert "ratios to layout+ksm" in printed(report(*cells))
    rows = {row.engine: row for row in summarize(report(*(c for c in cells if c.engine != "layout+ksm")))}
    assert rows["udedup"].rival == "ksm"


def test_a_ratio_to_a_failed_rival_is_not_given():
    row = summarize(report(cell("none", 1000), cell("ksm", 300, status=FAILED), cell("udedup", 300)))[2]
    assert (row.rival, row.median("k_total")) == ("", None)


def test_a_time_that_not_every_repeat_reached_says_so():
    found = report(cell("none", 1000), cell("udedup", 300, time_data_s=0.5), cell("udedup", 600, 1))
    assert "0.500 (1 of 2)" in table.markdown(found)


def test_without_a_memory_cgroup_there_is_no_figure_of_it():
    assert "cgroup used" not in printed(report(cell("none", 1000)))
    assert "cgroup used |" in table.markdown(report(cell("none", 1000, final={"pss": 1, "store_unmapped": 0,
        "slab": 0, "cgroup_used": 5})))  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_no_figure_is_cut_off_by_a_narrow_terminal(width):
    more = {"freeze_us": {"p50": 1722.0, "p99": 8192.0, "max": 9372.0}, "load_s": 12.345, "time_99_s": 1.2345}
    console = Console(file=io.StringIO(), width=width)
    table.print_report(report(cell("none", 1000, load_s=10.0), cell("layout+ksm", 300, **more)), console)
    text = console.file.getvalue()
    assert "…" not in text
    for word in ("PSS+store MiB", "1722", "9372", "1.23x", "load time"):
        assert word in text
    tables = [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]
    assert tables and all(len(line) <= width for line in tables)


def test_what_quick_leaves_out_is_named():
    found = report(cell("none", 1000))
    found.plan["left_out"] = ["gunicorn", "udedup-trap"]
    assert "Left out by --quick: gunicorn, udedup-trap." in printed(found)


def test_a_skipped_cell_says_why():
    found = report(
        cell("none", 1000), Cell("arrays", "ksm", 0, status=SKIPPED, reason="KSM's knobs need root")
    )
    assert "KSM's knobs need root" in printed(found)


def test_everything_comes_again_from_the_json(tmp_path):
    found = report(cell("none", 1000), cell("ksm", 300, time_99_s=1.25, cpu_99_s=0.75))
    found.save(tmp_path / "report.json")
    again = Report.load(tmp_path / "report.json")
    assert table.markdown(again) == table.markdown(found)
    assert "1.25" in table.markdown(again)


def test_another_json_is_refused(tmp_path):
    (tmp_path / "other.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="not a report"):
        Report.load(tmp_path / "other.json")


@pytest.mark.parametrize(("name", "magic"), [("picture.png", b"\x89PNG"), ("picture.svg", b"<?xml")])
def test_pictures(tmp_path, name, magic):
    pytest.importorskip("matplotlib")
    plot.draw(report(cell("none", 1000), cell("ksm", 300)), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)


def test_a_picture_of_nothing_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UdedupError, match="nothing to draw"):
        plot.draw(report(Cell("arrays", "none", 0, status=FAILED)), tmp_path / "x.png")


def test_a_picture_of_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UdedupError, match="PNG or SVG"):
        plot.check_target(tmp_path / "picture.gif")


def test_wrong_results_fail_the_cell():
    good, bad = cell("none", 1000), cell("udedup", 100, checks=["a", "x"])
    judge_results(bad, [good])
    assert bad.status == FAILED
    assert "worker 1" in bad.reason


def test_missing_results_fail_the_cell():
    good, bad = cell("none", 1000), cell("udedup", 100, checks=["a"])
    judge_results(bad, [good])
    assert bad.status == FAILED


def test_without_a_reference_nothing_stands():
    lone = cell("udedup", 100)
    judge_results(lone, [cell("none", 1000, status=FAILED)])
    assert lone.status == FAILED


def test_repeats_are_interleaved_and_none_leads():
    found = order(Plan(["arrays"], ["ksm", "udedup"], repeats=2))
    assert [engine for _, engine, _ in found] == ["none", "ksm", "udedup", "none", "udedup", "ksm"]


def test_what_is_named_twice_runs_once():
    found = order(Plan(["arrays", "arrays"], ["udedup", "none", "udedup"], repeats=1))
    assert found == [("arrays", "none", 0), ("arrays", "udedup", 0)]
