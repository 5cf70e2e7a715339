"""What a cache of rows takes, what it saves, and what cannot be one."""

import pytest
from asked import tasks_of
from caches import FORMATS, cached, table_of

from engram_exp.errors import ConfigError
from engram_exp.steps.lookup.cached import CachedLookup, size_of
from engram_exp.steps.lookup.cached_copy import CachedCopyLookup

OPTIONS = {"gb": 1.0, "ways": 2, "policy": "lru", "state": "warm", "profile_tokens": 1}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"ways": 12}, "lookup.ways=12: must be a power of two"),
        ({"ways": 0}, "lookup.ways=0: must be a power of two"),
        ({"ways": 128}, "lookup.ways=128: must be a power of two, and at most 64"),
        ({"gb": 1e-7}, "lookup.gb=1e-07: must hold a set of 2 rows, which takes 2.84e-07"),
        ({"gb": -1.0}, "lookup.gb=-1.0: must hold a set"),
        ({"gb": float("inf")}, "lookup.gb=inf: must hold a set"),
        ({"gb": 3.0}, "lookup.gb=3.0: must be below 2: no more device memory is free"),
        ({"policy": "static", "state": "cold"}, "lookup.state=cold: pinned rows are there from the start"),
        ({"profile_tokens": 0}, "lookup.profile_tokens=0: must be at least 1"),
    ],
)
def test_a_cache_that_cannot_be_is_refused(changed, says):
    load = lookup_load(**changed)
    with pytest.raises(ConfigError) as refusal:
        CachedLookup.refuse(load, free_bytes=int(2e9))
    assert str(refusal.value).startswith(says)


def lookup_load(**changed):
    places = {"table": "host", "hashing": "device", "lookup": "device", "projection": "device"}
    tasks = tasks_of(places, {"lookup": CachedLookup}, distinct_rows=0.5, distinct_in_all=0.5,
                     options={**OPTIONS, **changed})  # fmt: skip
    return next(task.load for task in tasks if task.load.stage.name == "lookup")


def test_its_memory_is_counted_to_the_byte():
    table = table_of(60, FORMATS[0])
    for policy in ("lru", "lfu", "static"):
        cache = cached(table, 40, 5, 4, policy, [1, 2, 3]).cache
        tensors = [cache.tags, cache.lines, *([] if policy == "static" else [cache.stamps, cache.heads])]
        tensors += [cache.uses] if policy == "lfu" else []
        row_bytes = 10
        sets, size_bytes = size_of({"gb": 1e-6, "ways": 4, "policy": policy}, row_bytes, 4)
        assert size_bytes <= 1000 < size_bytes + size_bytes // sets
        assert sum(tensor.nbytes for tensor in tensors) == size_bytes // sets * 5
    load = lookup_load()
    without = load.bytes_of(load.stage.makes) + 4 * load.row_ids
    assert 1e9 - 1000 < CachedLookup.keeps(load)["device"] - without <= 1e9


def test_no_limit_claims_that_a_hit_crosses_the_link():
    assert set(CachedLookup.work(lookup_load())) == {"device memory"}
    cold = CachedLookup.work(lookup_load(state="cold"))
    assert cold["link row reads"] == pytest.approx(0.5 * lookup_load().row_ids)


def test_rows_that_the_cpu_copies_are_read_and_cross_once():
    load, cold = lookup_load(), lookup_load(state="cold")
    rows, row_ids = load.bytes_of(load.stage.makes), 4 * load.row_ids
    assert CachedCopyLookup.work(load) == CachedLookup.work(load)
    assert CachedCopyLookup.work(cold) == {"host rows": 0.5 * load.row_ids, "link": 0.5 * rows, "device memory": rows}
    kept, link = CachedCopyLookup.keeps(load), CachedLookup.keeps(load)
    assert kept["host"] == rows + row_ids
    assert kept["device"] - link["device"] > rows + row_ids
