"""A cache of rows returns what a plain gather does, and keeps what a cache in Python keeps."""

from collections import Counter

import numpy as np
import pytest
import torch
from caches import FORMATS, KINDS, PLACEMENT, cached, gathered_by, kept_by, look_up, table_of
from hypothesis import given, settings
from hypothesis import strategies as st
from places import KERNEL_DEVICE
from row_caches import MODELS

from engram_exp.errors import MismatchError
from engram_exp.reuse.sample import repeat_distances
from engram_exp.run.row_cache import require_kept
from engram_exp.steps.lookup.cached import hottest
from engram_exp.steps.lookup.cached_copy import CachedCopyLookup
from engram_exp.steps.widening import build_widening


def batches_of(rows):
    """Some batches of row ids, some of which come again and again."""
    row_id = st.one_of(st.integers(0, rows - 1), st.integers(0, min(5, rows - 1)))
    return st.lists(st.lists(row_id, min_size=1, max_size=40), min_size=1, max_size=6)


@pytest.mark.slow
@pytest.mark.parametrize("policy", MODELS)
@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS), sets=st.integers(1, 5), ways=st.sampled_from([1, 2, 4, 8]),
    row_format=st.sampled_from(FORMATS), batches=batches_of(60), rows_per_program=st.sampled_from([1, 4, 16]),
    programs=st.sampled_from([None, 1, 3]),
)  # fmt: skip
def test_what_hits_and_what_is_evicted_is_as_in_a_cache_in_python(
    policy, kind, sets, ways, row_format, batches, rows_per_program, programs
):
    table, model = table_of(60, row_format), MODELS[policy](sets, ways)
    lookup = cached(table, 40, sets, ways, policy, rows_per_program=rows_per_program, programs=programs, kind=kind)
    gathered, copied = gathered_by(lookup), []
    for batch in batches:
        copied += sorted({row_id for row_id in batch if row_id not in model.sets[row_id % sets]})
        rows, hits = look_up(lookup, batch)
        assert torch.equal(rows, table.contents(torch.tensor(batch)))
        assert hits == model.hits(batch)
        assert kept_by(lookup) == [set(rows) for rows in model.sets]
        if kind is CachedCopyLookup:
            assert gathered == copied
            assert lookup.counts[2] == len(copied)
    require_kept("lookup", lookup, table)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS), sets=st.integers(1, 5), ways=st.sampled_from([1, 2, 4]),
    row_format=st.sampled_from(FORMATS), profile=st.lists(st.integers(0, 30), min_size=1, max_size=80),
    batches=batches_of(60),
)  # fmt: skip
def test_pinned_rows_are_the_hottest_of_each_set_and_stay(kind, sets, ways, row_format, profile, batches):
    table, counts = table_of(60, row_format), Counter(profile)
    lookup = cached(table, 40, sets, ways, "static", profile, kind=kind)
    pinned = [
        set(sorted((row for row in counts if row % sets == number), key=lambda row: (-counts[row], row))[:ways])
        for number in range(sets)
    ]
    for batch in batches:
        rows, hits = look_up(lookup, batch)
        assert torch.equal(rows, table.contents(torch.tensor(batch)))
        assert hits == sum(row_id in pinned[row_id % sets] for row_id in batch)
        assert kept_by(lookup) == pinned
    require_kept("lookup", lookup, table)


@pytest.mark.parametrize("ways", [2, 8])
def test_one_set_hits_as_distances_between_uses_say(ways):
    row_ids = np.minimum(np.random.default_rng(0).zipf(1.3, 40), 60) - 1
    lookup = cached(table_of(60, FORMATS[0]), 1, 1, ways)
    _, distances = repeat_distances(row_ids)
    assert 0 < np.count_nonzero(distances < ways) < len(distances)
    assert sum(look_up(lookup, [row_id])[1] for row_id in row_ids) == np.count_nonzero(distances < ways)


def chains(sets, batch, order):
    """Heads and links as programs leave them that chain their row ids in some order; all of them missed."""
    heads, links = torch.full((sets,), -1, dtype=torch.int32), torch.empty(len(batch), dtype=torch.int32)
    for index in order:
        links[index], heads[batch[index] % sets] = heads[batch[index] % sets].clone(), index
    return heads, links


@pytest.mark.slow
@pytest.mark.parametrize("policy", MODELS)
@settings(max_examples=25, deadline=None)
@given(data=st.data(), sets=st.integers(1, 3), ways=st.sampled_from([1, 2, 4]), before=batches_of(20))
def test_in_whatever_order_row_ids_are_chained_the_same_rows_stay(policy, data, sets, ways, before):
    """The interpreter runs one program after the other; a GPU chains in any order."""
    from engram_exp.steps.lookup import row_cache_triton as kernels

    table = table_of(60, FORMATS[0])
    batch = data.draw(st.lists(st.integers(20, 59), min_size=1, max_size=24))  # none of them hits
    order = data.draw(st.permutations(range(len(batch))))
    model, lookup = MODELS[policy](sets, ways), cached(table, 40, sets, ways, policy)
    for earlier in before:
        look_up(lookup, earlier)
        model.hits(earlier)
    cache = lookup.cache
    row_ids = torch.tensor(batch, dtype=torch.int32, device=KERNEL_DEVICE)
    rows = table.contents(row_ids).to(KERNEL_DEVICE).view(cache.lines.dtype)
    heads, links = chains(sets, batch, order)
    cache.heads.copy_(heads)
    cache.next[: len(batch)] = links.to(KERNEL_DEVICE)
    cache.clock[1] = cache.clock[0]
    state = cache.tags, cache.lines, cache.stamps, cache.uses, cache.heads, cache.next, cache.clock
    grid = (-(-len(batch) // kernels.ROWS_OF_INSERT),)
    kernels._insert[grid](
        row_ids, rows, *state, len(batch), sets, WAYS=ways, LINE_WORDS=cache.words, ROWS=kernels.ROWS_OF_INSERT,
        BLOCK_WORDS=1 << (cache.words - 1).bit_length(), COUNTS_USES=cache.counts_uses, num_warps=1,
    )  # fmt: skip
    model.hits(batch)
    assert kept_by(lookup) == [set(rows) for rows in model.sets]
    require_kept("lookup", lookup, table)


def graph_of(lookup, row_ids):
    """What replays a lookup of these row ids from a CUDA graph; its rows lie where the lookup keeps them."""
    lookup(row_ids)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lookup(row_ids)
    return graph.replay


@pytest.mark.accelerator
@pytest.mark.parametrize("policy", MODELS)
@pytest.mark.parametrize(("kind", "replayed"), [(KINDS[0], False), (KINDS[0], True), (KINDS[1], False)])
@pytest.mark.parametrize(("sets", "ways"), [(1, 16), (64, 8), (5000, 16)])
def test_many_programs_at_one_set_keep_what_one_would(policy, sets, ways, kind, replayed):
    rows, most, generator = 100_000, 100_000, torch.Generator().manual_seed(0)
    table, model = table_of(rows, FORMATS[1]), MODELS[policy](sets, ways)
    lookup = cached(table, most, sets, ways, policy, rows_per_program=16, programs=528, kind=kind)
    row_ids = torch.zeros(1, most, 1, dtype=torch.int32, device=KERNEL_DEVICE)
    found, look = lookup(row_ids), lambda: lookup(row_ids)
    model.hits([0] * most)
    if replayed:
        look = graph_of(lookup, row_ids)
    for _ in range(4):
        batch = (torch.rand(most, generator=generator) ** 4 * rows).int()
        row_ids.copy_(batch.view_as(row_ids))
        before = int(lookup.counts[0])
        look()
        assert torch.equal(found.cpu(), table.contents(batch))
        assert int(lookup.counts[0]) - before == model.hits(batch.tolist())
        assert kept_by(lookup) == [set(of_set) for of_set in model.sets]
    require_kept("lookup", lookup, table)


@pytest.mark.slow
@pytest.mark.parametrize("replayed", [False, pytest.param(True, marks=pytest.mark.accelerator)])
@pytest.mark.parametrize("sets", [16, 64])
def test_many_sets_of_16_hit_nearly_as_often_as_the_curve_of_one_says(sets, replayed):
    """Steps of 256 rows of a Zipf-like stream. All uses of a row in a step hit if its first one does."""
    generator, of_step, steps, rows = np.random.default_rng(0), 256, 24, 4000
    asked = np.minimum(generator.zipf(1.2, of_step * steps), rows) - 1
    places, distances = repeat_distances(asked)
    is_hit = np.zeros(len(asked), dtype=bool)
    is_hit[places] = distances < sets * 16
    expected = 0.0
    for first in range(len(asked) // 2, len(asked), of_step):
        _, first_use, uses = np.unique(asked[first : first + of_step], return_index=True, return_counts=True)
        expected += uses[is_hit[first + first_use]].sum() / (len(asked) // 2)
    lookup = cached(table_of(rows, FORMATS[1]), of_step, sets, 16, rows_per_program=16)
    row_ids = torch.zeros(1, of_step, 1, dtype=torch.int32, device=KERNEL_DEVICE)
    look = graph_of(lookup, row_ids) if replayed else lambda: lookup(row_ids)
    lookup.reset()
    for step, batch in enumerate(torch.from_numpy(asked).int().view(steps, -1)):
        if step == steps // 2:
            lookup.counts.zero_()
        row_ids.copy_(batch.view_as(row_ids))
        look()
    hit, counted = lookup.counts.tolist()
    assert counted == len(asked) // 2
    assert 0.2 < expected < 0.95
    assert hit / counted == pytest.approx(expected, abs=0.02)


def test_fp8_rows_from_the_cache_widen_as_any_others():
    table = table_of(60, FORMATS[1])
    lookup = cached(table, 12, 3, 2)
    widening = build_widening(table.row_format, 12, 1, PLACEMENT)
    for batch in ([1, 2, 3, 1], [1, 50, 59, 3, 1]):
        look_up(lookup, batch)
    row_ids = torch.tensor([1, 2, 50, 59, 3, 4], dtype=torch.int32)
    got = widening(lookup(row_ids.to(KERNEL_DEVICE).view(1, -1, 1))).cpu()
    assert torch.equal(got, table.row_format.widen(table.contents(row_ids)))


def test_an_empty_cache_hits_nothing():
    lookup = cached(table_of(60, FORMATS[0]), 8, 3, 2)
    assert [look_up(lookup, [1, 2, 3])[1] for _ in range(2)] == [0, 3]
    lookup.reset()
    assert look_up(lookup, [1, 2, 3])[1] == 0
    assert look_up(lookup, [3, 2])[1] == 2


@pytest.mark.parametrize("row_format", FORMATS)
def test_one_damaged_byte_among_all_lines_is_found(row_format):
    table = table_of(60, row_format)
    lookup = cached(table, 8, 3, 2)
    look_up(lookup, [7, 8, 9])
    require_kept("lookup", lookup, table)
    lookup.cache.lines.view(torch.uint8)[lookup.cache.tags.flatten().tolist().index(8), -1] ^= 1
    with pytest.raises(MismatchError, match=r"^lookup: 1 of 3 rows in the cache differ from the table"):
        require_kept("lookup", lookup, table)


def test_the_hottest_rows_of_each_set_are_pinned():
    row_ids = np.array([4, 4, 4, 2, 2, 0, 6, 3, 3, 1])
    assert hottest(row_ids, sets=2, ways=2).tolist() == [4, 2, 3, 1]
    assert hottest(row_ids[:3], sets=2, ways=2).tolist() == [4, -1, -1, -1]
