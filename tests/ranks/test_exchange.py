"""Whoever asks, from whichever ranks the rows come and however: they are those of one whole table, to the last bit."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from pool import pool_of

from engram_exp.layer.row_format import RowFormat
from engram_exp.layer.shards import Shards
from engram_exp.machine.placement import Placement
from engram_exp.measure.limits import Limits
from engram_exp.measure.peaks import rank_limits
from engram_exp.measure.rank_clock import Watch
from engram_exp.steps.exchange.all_gather import AllGatherExchange
from engram_exp.steps.exchange.all_reduce import AllReduceExchange
from engram_exp.steps.exchange.all_to_all import AllToAllExchange
from engram_exp.steps.exchange.peer import PeerExchange
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.tables.ranks import HostShard, Shard, SharedTable

CPU = Placement(torch.device("cpu"))
PEER = partial(PeerExchange, rows_per_program=32, warps=4, programs=None)
EXCHANGES = {
    "all_gather": AllGatherExchange,
    "all_to_all": AllToAllExchange,
    "all_reduce": AllReduceExchange,
    "peer": PEER,
}
FORMATS = {  # rows of whole words, of single bytes, and in two parts
    "bfloat16": RowFormat(8, torch.bfloat16),
    "fp8": RowFormat(9, torch.bfloat16, 4),
    "fp8_split": RowFormat(16, torch.bfloat16, 2, split=True),
}
SIZES = [1, 2, 3, 5]
COLUMNS = [24, 4]  # 4 over 5 ranks: one has none
TOKENS = {  # of each rank in turn; ranks of `same` batches have the first number
    "one": [1],
    "many": [7],
    "uneven": [5, 1, 9, 0, 3],
}


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    with pool_of(max(SIZES), tmp_path_factory.mktemp("ranks")) as ready:
        yield ready


def geometry(columns):
    """Rows of each column: uneven, as primes are."""
    return [53 + 2 * column for column in range(columns)]


def ids_of(rank, tokens, column_rows, dtype):
    """Row ids [tokens, H] of a rank; the first and the last row of every column are among them."""
    generator = torch.Generator().manual_seed(rank)
    rows = torch.tensor(column_rows)
    ids = torch.randint(2**40, (tokens, len(rows)), generator=generator) % rows
    ids[:1], ids[1:2] = 0, rows - 1
    return (ids + rows.cumsum(0) - rows).to(dtype).unsqueeze(0)


def exchange_of(ranks, name, split, row_format, columns, tokens, own, kind=Shard):
    column_rows = geometry(columns)
    shards = Shards(column_rows, sum(column_rows) + 3, ranks.size, split)
    options = {"huge_pages": False, "pinned": False} if kind is HostShard else {}
    table = kind(row_format, 0, CPU, ranks, shards, name == "peer", split, **options)

    def own_lookup(of, most, number):
        return GatherLookup(of, most, number, CPU, 1)

    return EXCHANGES[name](table, shards, ranks, own_lookup, row_format, max(*tokens, 1), columns, CPU, tokens, own)


def deliver(ranks, name, split, own, kind=Shard):
    """How many bytes of how many differ on this rank, over all sizes of batches, formats and numbers of columns."""
    different = compared = 0
    for number, (case, numbers) in enumerate(TOKENS.items()):
        if case == "uneven" and not own:
            continue
        tokens = (numbers * ranks.size)[: ranks.size]
        for columns, (format_, dtype) in zip(COLUMNS, permuted(number), strict=True):
            row_format = FORMATS[format_]
            exchange = exchange_of(ranks, name, split, row_format, columns, tokens, own, kind)
            ids = ids_of(ranks.rank if own else 0, tokens[ranks.rank], geometry(columns), dtype)
            want = row_format.contents(ids[0], 0).flatten(1)
            got = exchange(ids)
            assert got.shape == want.shape
            different += int((got.view(torch.uint8) != want.view(torch.uint8)).sum())
            compared += want.numel()
    return different, compared


def permuted(number):
    """Two of the formats, each with one of the types of row ids."""
    formats, dtypes = list(FORMATS), (torch.int32, torch.int64)
    return [(formats[(number + other) % len(formats)], dtypes[other]) for other in range(2)]


def ways():
    for name in EXCHANGES:
        for split in ("contiguous", "strided", "rows"):
            for own in (False, True):
                takes = getattr(EXCHANGES[name], "func", EXCHANGES[name])
                if (split != "rows" or takes.takes_rows) and (own or not takes.needs_own):
                    yield pytest.param(name, split, own, id=f"{name}-{split}-{'own' if own else 'same'}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "split", "own"), list(ways()))
def test_every_rank_gets_the_bits_of_a_whole_table(pool, name, split, own):
    for size in SIZES:
        for different, compared in pool(size, deliver, name, split, own):
            assert (different, compared > 0) == (0, True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all_gather", "peer"])
def test_a_share_may_lie_in_host_memory(pool, name):
    for different, compared in pool(3, deliver, name, "strided", True, HostShard):
        assert (different, compared > 0) == (0, True)


def part_of_a_batch(ranks, tokens, part):
    exchange = exchange_of(ranks, "all_to_all", "strided", FORMATS["bfloat16"], 24, tokens, True)
    ids = ids_of(ranks.rank, part, geometry(24), torch.int32)
    return bool((exchange(ids) == FORMATS["bfloat16"].contents(ids[0], 0).flatten(1)).all())


@pytest.mark.slow
def test_parts_of_batches_may_be_exchanged_where_batches_are_of_one_size(pool):
    assert pool(2, part_of_a_batch, [8, 8], 3) == [True, True]
    with pytest.raises(AssertionError, match="batches of different sizes come whole"):
        pool(1, part_of_a_batch_of_two, 3)


def part_of_a_batch_of_two(ranks, part):
    exchange = exchange_of(ranks, "all_to_all", "strided", FORMATS["bfloat16"], 24, [8], True)
    exchange.rank_tokens = [8, 5]
    exchange(ids_of(0, part, geometry(24), torch.int32))


def shared_table(ranks, row_format, rows):
    table = SharedTable(rows, row_format, 0, CPU, ranks, huge_pages=False, pinned=False)
    want = row_format.contents(torch.arange(rows), 0)
    return bool((torch.cat(table.parts, dim=1) == want).all()), table.parts[0].data_ptr() % 4096


@pytest.mark.slow
@pytest.mark.parametrize("row_format", FORMATS.values(), ids=FORMATS)
def test_one_table_in_host_memory_is_whole_on_every_rank(pool, row_format):
    for size in SIZES:
        for rows in (1, 4, 101):
            assert all(whole for whole, _ in pool(size, shared_table, row_format, rows))


def fail_on(ranks, wrong, message):
    """What a rank learns of the errors of some, and of the largest number that all have."""
    error = ValueError(message) if ranks.rank in wrong else None
    try:
        largest = ranks.agree(error, (float(ranks.rank), 1.0))
    except Exception as raised:
        return str(raised), raised.status
    return largest


@pytest.mark.slow
def test_what_one_rank_finds_all_know(pool):
    assert pool(3, fail_on, [], "") == [[2.0, 1.0]] * 3
    assert pool(3, fail_on, [1], "no") == [("rank 1: ValueError('no')", "crash")] * 3
    assert pool(3, fail_on, [0, 2], "no") == [("ranks 0, 2: ValueError('no')", "crash")] * 3
    assert pool(3, fail_on, [0, 1, 2], "no") == [("ValueError('no')", "crash")] * 3


def draws(ranks):
    torch.manual_seed(random.randrange(2**31))
    ranks.draw_alike()
    return int(torch.randint(2**31, ()))


@pytest.mark.slow
def test_ranks_may_draw_alike(pool):
    assert len(set(pool(3, draws))) == 1


def peaks_of(ranks, folder):
    return rank_limits(Limits({}), Path(folder), {}, CPU.device, ranks=ranks, refresh=False, announce=print).peaks


@pytest.mark.slow
def test_what_ranks_can_send_each_other_is_measured_once_and_kept(pool, tmp_path):
    first, second = pool(2, peaks_of, str(tmp_path))
    assert first == second
    assert min(first["peers_ms"].values()) > 0
    assert first["all_ranks_gb_per_s"]["host memory of all ranks"] > 0
    (file,) = tmp_path.iterdir()
    before = file.stat().st_mtime_ns
    assert pool(2, peaks_of, str(tmp_path)) == [first, first]
    assert file.stat().st_mtime_ns == before
    pool(3, peaks_of, str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def hangs(ranks, hung):
    """What the watch of a rank says that waits for one which hangs elsewhere; nothing, of that one."""
    told = SimpleQueue()
    waiting = replace(ranks, patience_s=0.2, store=dist.PrefixStore(f"hung {hung}", ranks.store))
    watch = Watch(waiting, told.put)
    with patch("engram_exp.machine.ranks.GRACE_S", 1.0):
        with watch:
            pass
        with watch if ranks.rank not in hung else nullcontext():
            return str(told.get(timeout=30)) if ranks.rank not in hung else told.empty()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hung", "words"), [([1], "rank 1 kept the others waiting for"), ([], "all ranks waited for each other for")]
)
def test_whoever_hangs_while_others_wait_on_their_devices_is_named(pool, hung, words):
    text = f"{words} 0.2 s (rank_timeout_s)"
    assert pool(3, hangs, hung) == [True if rank in hung else text for rank in range(3)]
