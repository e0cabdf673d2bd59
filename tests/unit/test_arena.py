"""Arena and advise, without an agent: they must be usable before and after one."""

import mmap
import os

import pytest

import udedup


def test_arena_is_a_buffer_of_whole_pages() -> None:
    with udedup.Arena(5000) as arena:
        assert len(arena) == 2 * mmap.PAGESIZE if mmap.PAGESIZE == 4096 else True
        assert bytes(arena[:100]) == bytes(100)
        arena[10] = 7
        assert arena[10] == 7


def test_allocate_cuts_page_aligned_parts() -> None:
    arena = udedup.Arena(3 * mmap.PAGESIZE)
    first, second = arena.allocate(100), arena.allocate(mmap.PAGESIZE + 1)
    first[:] = b"a" * 100
    second[:] = b"b" * len(second)
    assert bytes(arena[:101]) == b"a" * 100 + b"\0"
    assert arena[mmap.PAGESIZE] == ord("b")
    with pytest.raises(MemoryError, match="make a larger one"):
        arena.allocate(1)
    with pytest.raises(ValueError):
        arena.allocate(0)
    del first, second
    arena.close()
    arena.close()


def test_numpy_sees_the_same_memory() -> None:
    numpy = pytest.importorskip("numpy")
    arena = udedup.Arena(1 << 20)
    array = numpy.frombuffer(arena.allocate(8000), dtype="f8")
    assert array.flags.writeable and array.ctypes.data % mmap.PAGESIZE == 0
    array[:] = 1.5
    assert arena[6:8] == b"\xf8\x3f"
    with pytest.raises(udedup.UdedupError, match="in use; delete arrays"):
        arena.close()
    assert array.sum() == 1500
    del array
    arena.close()


def test_bad_sizes_and_resize() -> None:
    for size in (0, -1):
        with pytest.raises(ValueError):
            udedup.Arena(size)
    with udedup.Arena(1) as arena, pytest.raises(udedup.UdedupError, match="cannot change"):
        arena.resize(8192)


def test_advise_covers_whole_pages_only() -> None:
    page = mmap.PAGESIZE
    with (
        mmap.mmap(-1, 4 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory,
        memoryview(memory) as view,
    ):
        assert udedup.advise(view, udedup.MADV_MERGEABLE) == 4 * page
        assert udedup.advise(view[1:], udedup.MADV_MERGEABLE) == 3 * page
        assert udedup.advise(view[1 : 2 * page - 1], udedup.MADV_MERGEABLE) == 0
        assert udedup.advise(view, udedup.MADV_UNMERGEABLE) == 4 * page


def test_advise_refuses_other_advice_and_no_buffer() -> None:
    with pytest.raises(ValueError):
        udedup.advise(bytearray(8192), 4)
    with pytest.raises(TypeError):
        udedup.advise(object(), udedup.MADV_MERGEABLE)  # type: ignore[arg-type]


def test_leave_without_join_does_nothing() -> None:
    udedup.leave()
    assert udedup.joined() is False


def test_disabled_join_starts_nothing(domains: os.PathLike[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDEDUP_DISABLE", "1")
    udedup.join()
    assert not os.path.exists(domains)
    assert udedup.joined() is False
