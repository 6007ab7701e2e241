"""Several stores together: which are found again, and which had to go."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from deltafit.engine import states
from deltafit.engine.states import StateStore, StateStores

WIDTH = 4
ROWS = [3, 2]  # tokens
SIZE = 4 * WIDTH * sum(ROWS)


def kept(stores: StateStores, name: str, folder: Path) -> StateStore | None:
    store = stores.opened(ROWS, WIDTH, folder)
    if store is not None:
        stores.keep(name.encode(), store)
    return store


def names(stores: StateStores, *candidates: str) -> str:
    return "".join(name for name in candidates if stores.find(name.encode()) is not None)


def test_the_least_recently_used_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "MEMORY_LIMIT", 2 * SIZE)
    stores = StateStores()
    first = kept(stores, "a", tmp_path)
    kept(stores, "b", tmp_path)
    assert stores.find(b"a") is first and stores.find(b"d") is None
    kept(stores, "c", tmp_path)
    assert names(stores, "a", "b", "c") == "ac"
    assert stores.bytes_held(in_memory=True) == 2 * SIZE
    assert stores.bytes_held(in_memory=True, besides=first) == SIZE
    stores.clear()
    assert names(stores, "a", "b", "c") == ""


@pytest.mark.parametrize("in_memory", [True, False])
def test_together_they_take_a_share_of_what_would_be_free_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    """A quarter of ten stores is two, however much of it they hold already."""
    stores = StateStores()

    def left() -> int:
        return 10 * SIZE - stores.bytes_held(in_memory=in_memory)

    if in_memory:
        monkeypatch.setattr(
            states.psutil, "virtual_memory", lambda: SimpleNamespace(available=left())
        )
    else:
        monkeypatch.setattr(states, "MEMORY_LIMIT", 0)
        monkeypatch.setattr(states.shutil, "disk_usage", lambda _: SimpleNamespace(free=left()))
    for name in "abc":
        store = kept(stores, name, tmp_path / "new")
        assert store is not None and store.in_memory == in_memory
    assert names(stores, *"abc") == "bc"
    assert stores.bytes_held(in_memory=in_memory) == 2 * SIZE
    assert stores.bytes_held(in_memory=not in_memory) == 0


def test_what_spills_leaves_memory_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "MEMORY_LIMIT", SIZE)
    stores = StateStores()
    kept(stores, "a", tmp_path)
    large = stores.opened([100], WIDTH, tmp_path)
    assert large is not None and not large.in_memory
    assert names(stores, "a") == "a"


def test_what_no_room_can_be_made_for_sends_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = StateStores()
    kept(stores, "a", tmp_path)
    monkeypatch.setattr(states, "MEMORY_LIMIT", 0)
    monkeypatch.setattr(states.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    assert kept(stores, "b", tmp_path) is None
    assert names(stores, "a", "b") == "a"
