"""What the planner matches, in which runs, and how a plan that fails ends."""

import os
import struct
import time
from collections.abc import Callable

import pytest
from fake_agent import KEY, PAGE, Bench, FakeProcess, digest, header_of, numbers, page, runs, sealed

from udedup.core import lib
from udedup.merger import planner, wire

HERE = 0x7F0000000000
THERE = 0x7E0000000000


def sent(bench: Bench, kind: int) -> list[list[tuple[int, int, int]]]:
    return [runs(data) for sent_kind, _, data in bench.sent if sent_kind == kind]


def test_equal_arrays_become_one_publication_and_one_merge(bench: Bench) -> None:
    """500 equal pages at different addresses in two processes: one run each, across block borders."""
    for vaddr in (HERE, THERE + 17 * PAGE):
        bench.join()[1].write(vaddr, numbers(1, 500))
    bench.settle()
    assert sent(bench, wire.PUBLISH) == [[(HERE, 500, 0)]]
    assert sent(bench, wire.MERGE) == [[(HERE, 500, 0)], [(THERE + 17 * PAGE, 500, 0)]]
    sums, store = bench.count()
    assert (sums["shared"], sums["sharing"], sums["unshared"]) == (500, 500, 0)
    assert (store["slots"], store["used"], store["dead"]) == (500, 500, 0)


def test_pages_without_a_twin_stay(bench: Bench) -> None:
    first, second = bench.join()[1], bench.join()[1]
    first.write(HERE, numbers(1, 100))
    second.write(HERE, numbers(1001, 100))
    bench.settle()
    assert bench.sent == []
    assert bench.count()[0]["unshared"] == 200


def test_volatile_pages_are_no_candidates(bench: Bench) -> None:
    bench.join()[1].write(HERE, numbers(1, 64), lib.UD_PG_VOLATILE)
    bench.join()[1].write(HERE, numbers(1, 64))
    bench.settle()
    assert bench.sent == []
    sums = bench.count()[0]
    assert (sums["pages_volatile"], sums["unshared"]) == (64, 64)


def test_eight_sharers_publish_once(bench: Bench) -> None:
    for _ in range(8):
        bench.join()[1].write(HERE, numbers(1, 300))
    bench.settle()
    assert len(sent(bench, wire.PUBLISH)) == 1
    assert len(sent(bench, wire.MERGE)) == 8
    sums, _ = bench.count()
    assert (sums["shared"], sums["sharing"]) == (300, 2100)


def test_duplicates_within_one_process(bench: Bench) -> None:
    process = bench.join()[1]
    process.write(HERE, numbers(1, 100))
    process.write(THERE, numbers(1, 100))
    bench.settle()
    sums, store = bench.count()
    assert (sums["shared"], sums["sharing"], store["slots"]) == (100, 100, 100)
    assert sum(map(len, sent(bench, wire.MERGE))) == 2


def test_late_process_needs_no_publication(bench: Bench) -> None:
    for _ in range(2):
        bench.join()[1].write(HERE, numbers(1, 200))
    bench.settle()
    bench.sent.clear()
    bench.join()[1].write(THERE, numbers(1, 200))
    bench.settle()
    assert [kind for kind, _, _ in bench.sent] == [wire.MERGE]
    assert sent(bench, wire.MERGE) == [[(THERE, 200, 0)]]


def test_matches_reach_back_over_pages_seen_earlier(bench: Bench) -> None:
    """The run of the second process starts in the middle of the first's: both ends are found."""
    bench.join()[1].write(HERE, numbers(1, 60))
    second = bench.join()[1]
    second.write(THERE, [page(900), *numbers(10, 30), page(901)])
    bench.settle()
    assert sent(bench, wire.PUBLISH) == [[(HERE + 9 * PAGE, 30, 0)]]
    assert sent(bench, wire.MERGE) == [[(HERE + 9 * PAGE, 30, 0)], [(THERE + PAGE, 30, 0)]]


def test_long_runs_go_first(bench: Bench) -> None:
    first, second = bench.join()[1], bench.join()[1]
    for process, base in ((first, HERE), (second, THERE)):
        process.write(base, numbers(1, 5))
        process.write(base + 1024 * PAGE, numbers(100, 200))
        process.write(base + 4096 * PAGE, numbers(1000, 20))
    bench.settle()
    lengths = [npages for plan in sent(bench, wire.PUBLISH) for _, npages, _ in plan]
    assert lengths == [200, 20, 5]


def _published(bench: Bench) -> list[int]:
    """Pages of each publication asked for by now."""
    plans = [plan for plan in bench.planner.plans() if header_of(plan.data)[0] == wire.PUBLISH]
    return [sum(n for _, n, _ in runs(plan.data)) for plan in plans]


def test_the_first_publications_are_small(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is merged gives the memory for the next: 2 MiB, twice as much each time; after a rest anew."""
    pages = 4 * 2048
    for _ in range(2):
        bench.join(FakeProcess(capacity=512))
    for later, base in ((0, HERE), (11000, THERE), (12000, HERE + pages * PAGE)):
        monkeypatch.setattr(planner, "now_ms", lambda later=later: time.monotonic_ns() // 10**6 + later)
        for process in bench.processes.values():
            process.write(base, numbers(base, pages))
        bench.sent.clear()
        bench.settle()
        sizes = [sum(n for _, n, _ in publication) for publication in sent(bench, wire.PUBLISH)]
        assert sum(sizes) == pages
        assert sizes[:3] == [512, 1024, 2048] if later < 12000 else [2048] * 3


def test_without_a_merge_no_more_than_the_first_is_published(bench: Bench) -> None:
    for _ in range(2):
        bench.join(FakeProcess(capacity=512))[1].write(HERE, numbers(1, 8 * 2048))
    for sid, process in bench.processes.items():
        process.end_pass()
        bench.planner.scan(sid)
    assert _published(bench) == [512]


def test_publications_are_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No plan above 8 MiB, no more than 16 MiB before the agents."""
    monkeypatch.setattr(planner, "_FIRST", planner._OUTSTANDING)
    bench.configure()
    pages = 6 * 2048
    contents = numbers(1, pages)
    for _ in range(2):
        bench.join(FakeProcess(capacity=512))[1].write(HERE, contents)
    for sid, process in bench.processes.items():
        process.end_pass()
        bench.planner.scan(sid)
    first = [plan for plan in bench.planner.plans() if header_of(plan.data)[0] == wire.PUBLISH]
    assert [sum(n for _, n, _ in runs(plan.data)) for plan in first] == [2048] * 2
    assert len({plan.sid for plan in first}) == 2  # both publish
    assert bench.count()[1]["outstanding_pages"] == 4096
    assert bench.planner.timer() is not None


def test_publications_into_a_large_store_are_larger(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a descriptor. Else little is made at once of memory that merging has yet to free."""
    monkeypatch.setattr(planner, "_FIRST", 32 << 20)
    monkeypatch.setattr(planner, "_LARGE_STORE", 1024 * PAGE)
    for _ in range(2):
        bench.join()[1].write(HERE, numbers(1, 1024))
    assert not bench.planner.limit(1 << 30)
    bench.settle()
    bench.count()
    assert bench.planner.limit(1 << 30)
    bench.planner.configure(KEY, bench.settings)
    for process in bench.processes.values():
        process.write(THERE, numbers(10**6, 6 * 4096))
        process.end_pass()
    for sid in bench.processes:
        bench.planner.scan(sid)
    assert _published(bench) == [4096] * 2


def test_min_run_leaves_short_runs(bench: Bench) -> None:
    bench.configure(min_run=16)
    for process, base in ((bench.join()[1], HERE), (bench.join()[1], THERE)):
        process.write(base, numbers(1, 8))
        process.write(base + 1024 * PAGE, numbers(100, 40))
    bench.settle()
    assert bench.count()[0]["merged"] == 80


def test_run_0_plans_nothing_until_1(bench: Bench) -> None:
    bench.configure(run=0)
    for _ in range(2):
        bench.join()[1].write(HERE, numbers(1, 50))
    bench.settle()
    assert bench.sent == []
    bench.configure(run=1)
    bench.planner.scan_due()
    bench.settle()
    assert bench.count()[0]["merged"] == 100


def test_changed_after_the_digest_is_refused_and_forgotten(bench: Bench) -> None:
    """The waiter's bytes changed but its ledger does not know: compared, refused, nobody harmed."""
    bench.join()[1].write(HERE, numbers(1, 50))
    second = bench.join()[1]
    second.write(THERE, numbers(1, 50))
    second.memory[THERE + 25 * PAGE] = page(999)
    bench.settle()
    assert second.get(THERE + 25 * PAGE)[0] == lib.UD_PG_REFUSED
    assert bench.count()[0]["merged"] == 99


def test_waiter_that_changed_in_time_is_left_out(bench: Bench) -> None:
    bench.join()[1].write(HERE, numbers(1, 100))
    second = bench.join()[1]
    second.write(THERE, numbers(1, 100))
    for sid, process in bench.processes.items():
        process.end_pass()
        bench.planner.scan(sid)
    second.write(THERE + 20 * PAGE, [page(777)], lib.UD_PG_VOLATILE)
    bench.settle()
    # The longer part goes first.
    assert sent(bench, wire.MERGE) == [[(HERE, 100, 0)], [(THERE + 21 * PAGE, 79, 21), (THERE, 20, 0)]]


def test_owner_dies_before_it_published(bench: Bench) -> None:
    """The others find each other instead."""
    for _ in range(3):
        bench.join()[1].write(HERE, numbers(1, 100))
    for sid, process in bench.processes.items():
        process.end_pass()
        bench.planner.scan(sid)
    plans = list(bench.planner.plans())
    assert len(plans) == 1
    bench.planner.leave(plans[0].sid)
    bench.processes.pop(plans[0].sid).close()
    bench.settle()
    sums, _ = bench.count()
    assert (sums["shared"], sums["sharing"]) == (100, 100)


def test_owner_that_cannot_publish_is_passed_over(bench: Bench) -> None:
    for _ in range(3):
        bench.join()[1].write(HERE, numbers(1, 100))
    bad = 0
    for _ in range(300):
        for sid, process in bench.processes.items():
            process.end_pass()
            bench.planner.scan(sid)
        bench.planner.scan_due()
        for plan in bench.planner.plans():
            kind, number = header_of(plan.data)
            bad = bad or plan.sid
            if plan.sid == bad and kind == wire.PUBLISH:
                bench.planner.published(plan.sid, number, 0)
            elif kind == wire.PUBLISH:
                fd, _, _ = bench.processes[plan.sid].publish(plan.data)
                gid, _ = bench.planner.segment(fd)
                bench.fds[gid] = fd
                bench.planner.published(plan.sid, number, gid)
            else:
                bench.planner.result(
                    plan.sid, number, *bench.processes[plan.sid].merge(plan.data, bench.fds[plan.gid])
                )
        if bench.count()[0]["merged"] >= 200:
            return
        time.sleep(0.02)
    raise AssertionError("the owner that fails blocks the others")


def test_answer_to_no_plan_is_told(bench: Bench) -> None:
    sid, _ = bench.join()
    assert not bench.planner.published(sid, 77, 0)
    assert not bench.planner.result(sid, 77, 1, 0)


def test_a_broken_promise_is_found_by_who_compares(bench: Bench) -> None:
    """A publisher is believed until somebody finds other bytes; then the segment is read."""
    _, publisher = bench.join()
    publisher.write(HERE, numbers(1, 64))
    _, other = bench.join()
    other.write(HERE, numbers(1, 64))
    for each in bench.processes:
        bench.planner.scan(each)
    publish = publisher.publish
    publisher.publish = lambda message: (publisher.write(HERE, numbers(501, 64)), publish(message))[1]  # type: ignore[method-assign,func-returns-value]
    bench.step()
    other.merge, merge = (lambda *_: (0, 64)), other.merge  # type: ignore[method-assign,assignment]
    for _ in range(4):
        bench.step()
    other.merge = merge  # type: ignore[method-assign]
    _, third = bench.join()
    third.write(HERE, numbers(501, 64))
    bench.settle()
    assert third.get(HERE)[0] == lib.UD_PG_MERGED, "what the slots really hold serves others"
    assert not any(bench.planner.verify(gid, fd) for gid, fd in bench.fds.items())


@pytest.mark.parametrize("answers", [True, False])
def test_nothing_more_is_published_before_somebody_merged(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    """A segment is there twice until then, and that is bounded. Who does not answer holds up nobody."""
    for process in [bench.join()[1] for _ in range(2)]:
        process.write(HERE, numbers(1, 8192))
    bench.planner.limit(8 << 20)
    bench.planner.configure(KEY, bench.settings)
    for sid in bench.processes:
        bench.planner.scan(sid)
    publish = next(bench.planner.plans())
    fd, _, npages = bench.processes[publish.sid].publish(publish.data)
    plan = (publish.sid, header_of(publish.data)[1])
    bench.planner.published(*plan, bench.planner.segment(fd, 0, plan)[0])
    assert bench.count()[1]["outstanding_pages"] == npages
    merges = list(bench.planner.plans())
    assert {header_of(merge.data)[0] for merge in merges} == {wire.MERGE}
    if answers:
        merged = bench.processes[merges[0].sid].merge(merges[0].data, fd)
        bench.planner.result(merges[0].sid, header_of(merges[0].data)[1], *merged)
        assert bench.count()[1]["outstanding_pages"] == 0
    else:
        now = planner.now_ms
        monkeypatch.setattr(planner, "now_ms", lambda: now() + 20_000)
        assert bench.planner.timer() == 0
    assert header_of(next(bench.planner.plans()).data)[0] == wire.PUBLISH


def test_a_segment_that_nobody_comes_to_merge_with_holds_up_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishers that end at once; a process that is stopped, and has as many plans as may be before one."""
    late, now = 0, planner.now_ms
    monkeypatch.setattr(planner, "now_ms", lambda: now() + late)
    stopped_sid, stopped = bench.join(FakeProcess(capacity=2048))
    for number in range(8):
        sid, publisher = bench.join(FakeProcess(capacity=2048))
        for at, process in ((sid, publisher), (stopped_sid, stopped)):
            process.write(HERE + number * 64 * PAGE, numbers(1 + number * 64, 64))
            for _ in range(3):
                process.end_pass()
                bench.planner.scan(at)
        plans = [plan for plan in bench.planner.plans() if header_of(plan.data)[0] == wire.PUBLISH]
        plan = (sid, header_of(plans[0].data)[1])
        assert plans[0].sid == sid
        fd, _, _ = publisher.publish(plans[0].data)
        gid, _ = bench.planner.segment(fd, 0, plan)
        bench.fds[gid] = fd
        bench.planner.published(*plan, gid)
        bench.planner.leave(sid)
        bench.processes.pop(sid).close()
        list(bench.planner.plans())
    assert bench.count()[1]["ready_runs"] > 0
    late = 60_000
    list(bench.planner.plans())
    assert bench.count()[1]["outstanding_pages"] == 0


def test_segment_needs_all_seals(bench: Bench) -> None:
    import fcntl

    fd = sealed(page(1), fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    try:
        bench.planner.segment(fd)
    except PermissionError:
        return
    finally:
        os.close(fd)
    raise AssertionError("an unsealed segment was accepted")


def test_adopted_segment_serves_merges(bench: Bench) -> None:
    """A new merger, a process that already maps a segment, and one that does not."""
    first, second = FakeProcess(), FakeProcess()
    fd = sealed(b"".join(numbers(1, 40)))
    name = os.fstat(fd).st_ino
    for i in range(40):
        first.memory[HERE + i * PAGE] = page(1 + i)
        first.set(HERE + i * PAGE, lib.UD_PG_MERGED, name << 24 | i)
    second.write(THERE, numbers(1, 40))
    bench.join(first)
    bench.join(second)
    gid, real = bench.planner.segment(fd)
    bench.fds[gid] = fd
    assert real == name
    bench.settle()
    assert sent(bench, wire.PUBLISH) == []
    sums, store = bench.count()
    assert (sums["shared"], sums["sharing"], store["slots"]) == (40, 40, 40)
    os.close(fd)


def test_index_survives_growth_and_stale_entries(bench: Bench) -> None:
    """20,000 pages seen once and changed, then as many twins: all are found."""
    first = bench.join()[1]
    first.write(HERE, numbers(1, 20000))
    bench.settle()
    first.write(HERE, numbers(100001, 20000))
    bench.join()[1].write(THERE, numbers(100001, 20000))
    bench.settle()
    assert bench.count()[0]["merged"] == 40000


def test_metadata_is_within_its_bound(bench: Bench) -> None:
    """Ledger 9.25 bytes a page and ours: at most 24 together, unique pages being the worst case."""
    count = 40000
    bench.join()[1].write(HERE, numbers(1, count))
    bench.join()[1].write(HERE, numbers(1_000_000, count))
    bench.settle()
    sums, store = bench.count()
    assert sums["unshared"] == 2 * count
    assert store["metadata_bytes"] / (2 * count) + 9.25 <= 24


def test_digests_are_what_the_agent_computes() -> None:
    assert digest(page(5)) == digest(page(5)) != digest(page(6))
    assert struct.unpack_from("=Q", page(5))[0] == 5


def test_refused_pages_are_not_asked_for_again_and_again(bench: Bench) -> None:
    """An agent that refuses always, and turns the pages back into candidates: one plan, then quiet."""
    bench.join()[1].write(HERE, numbers(1, 100))
    bench.join()[1].write(HERE, numbers(1, 100))
    bench.settle()
    sid, third = bench.join()
    third.write(THERE, numbers(1, 100))
    plans = 0
    for _ in range(20):
        third.write(THERE, numbers(1, 100))
        third.end_pass()
        bench.planner.scan(sid)
        for plan in bench.planner.plans():
            plans += 1
            bench.planner.result(sid, header_of(plan.data)[1], 0, 100)
        bench.planner.scan_due()
    assert plans == 1
    third.write(THERE, numbers(1, 100), lib.UD_PG_VOLATILE)  # written: worth another try
    third.end_pass()
    bench.planner.scan(sid)
    third.write(THERE, numbers(1, 100))
    bench.settle()
    assert bench.count()[0]["merged"] == 300


def test_refused_pages_are_asked_for_again_though_nothing_happens(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both came to hold something else, and the planner saw neither change: the refusal is not for good."""
    bench.join()[1].write(HERE, numbers(1, 100))
    bench.join()[1].write(HERE, numbers(1, 100))
    bench.settle()
    late = [bench.join() for _ in range(2)]
    for _, process in late:
        process.write(THERE, numbers(1, 100))
    for sid, process in late:
        process.end_pass()
        bench.planner.scan(sid)
    for plan in bench.planner.plans():
        assert header_of(plan.data)[0] == wire.MERGE
        bench.planner.result(plan.sid, header_of(plan.data)[1], 0, 100)
    for sid, process in late:
        process.write(THERE, numbers(500, 100))
        process.end_pass()
        bench.planner.scan(sid)
    assert bench.step() == 0
    waited = 0.0
    while bench.count()[0]["merged"] < 400 and (timer := bench.planner.timer()) is not None:
        waited += timer
        assert waited < 60
        later = time.monotonic_ns() // 1_000_000 + int(waited * 1000) + 1
        monkeypatch.setattr("udedup.merger.planner.now_ms", lambda later=later: later)
        bench.planner.scan_due()
        bench.step()
    assert bench.count()[0]["merged"] == 400


def test_without_mappings_left_only_long_runs_go(bench: Bench) -> None:
    """What is left, and that it is left for want of mappings, is counted."""
    for process in (bench.join()[1], bench.join()[1]):
        process.header.vmas_budget = 1000
        process.header.vmas_used = 950
        process.write(HERE, numbers(1, 8))
        process.write(HERE + 1024 * PAGE, numbers(100, 100))
    bench.settle()
    sums = bench.count()[0]
    assert (sums["merged"], sums["left_vmas"]) == (200, 8)


def test_pages_met_while_they_are_published_are_not_published_again(bench: Bench) -> None:
    """The owner has merged its pages, its PUBLISHED is still on its way, and two more with the same come."""
    processes = [bench.join() for _ in range(2)]
    for _, process in processes:
        process.write(HERE, numbers(1, 300))
    for sid, process in processes:
        process.end_pass()
        bench.planner.scan(sid)
    (plan,) = bench.planner.plans()
    fd, name, _ = bench.processes[plan.sid].publish(plan.data)
    for _ in range(2):
        sid, late = bench.join()
        late.write(THERE, numbers(1, 300))
        late.end_pass()
        bench.planner.scan(sid)
    assert [p for p in bench.planner.plans() if header_of(p.data)[0] == wire.PUBLISH] == []
    gid, real = bench.planner.segment(fd)
    assert real == name
    bench.fds[gid] = fd
    bench.planner.published(plan.sid, header_of(plan.data)[1], gid)
    bench.settle()
    sums, store = bench.count()
    assert (sums["shared"], sums["sharing"], store["slots"]) == (300, 900, 300)


def test_of_several_candidates_one_goes_to_the_store(bench: Bench) -> None:
    """Two pairs find each other by address at the same time; the index knows but one of the four."""
    sids, processes = zip(*(bench.join() for _ in range(4)), strict=True)
    for process in processes[2:]:  # the last two have met before: each is asked first by the other
        process.write(THERE, numbers(1, 100))
    for process in processes:
        process.write(HERE, numbers(1001, 300), lib.UD_PG_VOLATILE)
    bench.settle()
    for process in processes:
        process.write(HERE, numbers(1001, 300))
        process.end_pass()
    for turn in (0, 3, 1, 2):
        bench.planner.scan(sids[turn])
    bench.settle()
    sums, store = bench.count()
    assert (sums["sharing"], store["slots"]) == (100 + 900, 100 + 300)


def test_a_run_of_several_segments_is_published_by_both(bench: Bench) -> None:
    """Each publishes about half of it, and all is stored once."""
    segment = (8 << 20) // PAGE
    contents = numbers(1, 2 * segment)
    for vaddr in (HERE, THERE, THERE + (1 << 30)):
        bench.join()[1].write(vaddr, contents)
    bench.settle()
    published = [0, 0, 0, 0]
    for kind, sid, data in bench.sent:
        if kind == wire.PUBLISH:
            published[sid] += sum(npages for _, npages, _ in runs(data))
    assert published[1:] == [segment, segment, 0]
    sums, store = bench.count()
    assert (sums["shared"], sums["sharing"], store["slots"]) == (2 * segment, 4 * segment, 2 * segment)


def test_segments_end_where_huge_pages_do(bench: Bench) -> None:
    """To replace a part of a huge page the kernel splits it first."""
    huge = PAGE // 8  # pages: a page table full of them
    start, count = HERE + 100 * PAGE, 20000
    contents = numbers(1, count)
    for _ in range(2):
        bench.join(FakeProcess(capacity=512))[1].write(start, contents)
    bench.settle()
    plans = [plan for kind in (wire.PUBLISH, wire.MERGE) for plan in sent(bench, kind)]
    ends = {vaddr + npages * PAGE for plan in plans for vaddr, npages, _ in plan}
    assert {end % (huge * PAGE) for end in ends - {start + count * PAGE}} == {0}
    assert max(npages for plan in plans for _, npages, _ in plan) == 2048
    assert bench.count()[1]["slots"] == count


def test_segments_begin_with_whole_huge_pages(bench: Bench) -> None:
    """Slot and address lie alike then, and the store's huge pages are mapped whole."""
    huge = PAGE // 8
    start, count = HERE + 100 * PAGE, 20000
    contents = numbers(1, count)
    for _ in range(2):
        bench.join(FakeProcess(capacity=512))[1].write(start, contents)
    bench.settle()
    alike = 0
    for plan in sent(bench, wire.PUBLISH):
        slot = 0
        for vaddr, npages, _ in plan:
            before = -vaddr // PAGE % huge  # pages, to where a huge page begins
            if npages >= before + huge:
                assert (slot + before) % huge == 0
                alike += (npages - before) // huge
            slot += npages
    assert alike == (count - (huge - 100)) // huge


def test_room_for_less_than_a_huge_page_is_used(bench: Bench) -> None:
    """On a machine that is nearly full a segment is smaller: a huge page is published in parts."""
    huge = PAGE // 8
    assert bench.planner.limit(huge // 2 * PAGE)
    bench.configure()
    process = bench.join(FakeProcess(capacity=512))[1]
    for vaddr in (HERE, THERE):  # one owner, so that nobody takes every second part of the run
        process.write(vaddr, numbers(1, 4 * huge))
    bench.settle()
    assert bench.count()[1]["slots"] == 4 * huge


def test_mappings_on_their_way_are_counted_once(bench: Bench) -> None:
    """120 short runs cost 240 mappings at most, however many wait for the same owner's pages."""
    for _ in range(5):
        process = bench.join()[1]
        process.header.vmas_budget = 1000
        for run in range(120):
            process.write(HERE + 8 * run * PAGE, numbers(1 + 4 * run, 4))
    bench.settle()
    sums = bench.count()[0]
    assert (sums["merged"], sums["left_vmas"]) == (5 * 480, 0)


def _clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def at(ms: int) -> None:
        monkeypatch.setattr("udedup.merger.planner.now_ms", lambda: ms)

    return at


@pytest.mark.parametrize(("done_at", "short_at"), [(0, 200), (250, 300), (1000, 500)])
def test_short_runs_wait_until_long_ones_are_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, done_at: int, short_at: int
) -> None:
    """But half a second at most, and 0.2 s at least. They are looked at each tenth of a second."""
    at = _clock(monkeypatch)
    at(1_000_000)
    for sid, process in [bench.join() for _ in range(2)]:
        process.write(HERE, numbers(1, 1000))
        process.write(THERE, numbers(2001, 10))
        bench.planner.scan(sid, 1010)
    for ms in range(0, 700, 50):
        at(1_000_000 + ms)
        while ms >= done_at and bench.step():
            pass
        bench.planner.scan_due()
        if bench.planner.queued() and (ms >= done_at or ms >= short_at):
            bench.step()
        if any(run[0] == THERE for plan in sent(bench, wire.PUBLISH) for run in plan):
            break
    assert ms == short_at


def test_quiet_though_a_page_was_put_off_and_met_in_one_scan(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page known before is looked at again, as another is matched: in one process, later in one scan."""
    at = _clock(monkeypatch)
    (one, first), (two, second) = bench.join(), bench.join()
    steps = ((one, first, HERE + 70 * PAGE), (two, second, HERE), (one, first, HERE))
    for ms, (sid, process, vaddr) in enumerate(steps, 1_000_000):
        at(ms)
        process.write(vaddr, [page(1)])
        process.end_pass()
        bench.planner.scan(sid, 100)  # it writes, so a run of one page is put off
    assert bench.step() == 0
    at(1_001_000)
    bench.planner.scan_due()
    while bench.step():
        pass
    assert bench.count()[0]["merged"] == 3
    assert bench.planner.quiet()
