"""The advisor turns pages_to_scan until scanning costs what it may, or takes as long as it should."""

from types import SimpleNamespace

from udedup.merger import advisor
from udedup.merger.advisor import Advisor
from udedup.merger.settings import Settings


class Host:
    """A server whose one agent spends CPU in proportion to pages_to_scan. Time is the test's."""

    def __init__(self, mode: int, seconds_per_page: float, tracked: int = 100_000) -> None:
        self.settings = Settings()
        self.settings.apply({"advisor_mode": mode, "pages_to_scan": 65536})
        self.cost = seconds_per_page
        self.cpu_us = 0.0
        self.changes = 0
        self.obeys = False  # agent_cpu_permille, as agents do
        self.ended = SimpleNamespace(counts={"agent_cpu_us": 0})
        self.planner = SimpleNamespace(
            header=lambda sid: SimpleNamespace(agent_cpu_us=int(self.cpu_us)),
            session_counts=lambda sid: {"tracked": tracked},
        )
        self.advisor = Advisor(self)  # type: ignore[arg-type]

    def agents(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(sid=1)]

    def change(self, checked: dict[str, int]) -> None:
        self.settings.apply(checked)
        self.changes += 1

    def run(self, seconds: int) -> list[float]:
        """The agent's CPU share in percent, second by second."""
        shares = []
        for now in range(seconds):
            spent = self.cost * self.settings["pages_to_scan"]
            spent = min(spent, self.settings["agent_cpu_permille"] / 1000) if self.obeys else spent
            self.cpu_us += spent * 1e6
            shares.append(100 * spent)
            self.advisor.tick(float(now))
        return shares


def test_cpu_mode_comes_down_to_its_share_and_stays() -> None:
    host = Host(advisor.CPU, seconds_per_page=3 / 65536)
    host.settings.apply({"advisor_max_cpu": 20})
    shares = host.run(40)
    assert shares[0] == 300
    assert all(share <= 24 for share in shares[-20:]), shares
    assert shares[-1] >= 12


def test_cpu_mode_speeds_up_within_its_bounds() -> None:
    host = Host(advisor.CPU, seconds_per_page=1e-9)
    host.run(20)
    assert host.settings["pages_to_scan"] == host.settings["advisor_max_pages_to_scan"]
    assert host.advisor.report()["mode"] == "cpu"


def test_scan_time_mode_spreads_a_pass_over_its_time() -> None:
    """100,000 pages in 10 s with a slice each 12.5 ms: 125 pages a slice."""
    host = Host(advisor.SCAN_TIME, seconds_per_page=1e-9)
    host.settings.apply({"advisor_target_scan_time": 10, "advisor_min_pages_to_scan": 1})
    host.run(10)
    assert 112 <= host.settings["pages_to_scan"] <= 138


def test_scan_time_mode_respects_cpu_and_minimum() -> None:
    host = Host(advisor.SCAN_TIME, seconds_per_page=1 / 1000, tracked=10**8)
    host.settings.apply(
        {"advisor_target_scan_time": 1, "advisor_max_cpu": 50, "advisor_min_pages_to_scan": 100}
    )
    host.run(60)
    assert host.settings["pages_to_scan"] <= 1000


def test_off_it_changes_nothing() -> None:
    host = Host(advisor.OFF, seconds_per_page=1.0)
    host.run(10)
    assert host.changes == 0 and host.advisor.wait(0) is None


def test_agents_rest_longer_once_the_share_was_exceeded() -> None:
    host = Host(advisor.CPU, seconds_per_page=1 / 1000)
    host.obeys = True
    host.settings.apply({"advisor_max_cpu": 20})
    shares = host.run(60)
    assert all(share <= 20 for share in shares[2:]) and shares[-1] >= 10, shares
    host.cost = 1e-9  # it costs next to nothing any more: the bound goes, then the slices grow
    host.run(90)
    assert host.settings["agent_cpu_permille"] == 1000
    assert host.settings["pages_to_scan"] == host.settings["advisor_max_pages_to_scan"]


def test_the_bound_goes_with_the_advisor() -> None:
    settings = Settings()
    settings.apply({"advisor_mode": advisor.CPU, "agent_cpu_permille": 5})
    assert settings.checked({"advisor_mode": 0})["agent_cpu_permille"] == 1000
