"""Which ranks may be asked for, and of what."""

import pytest
from common import TINY

from engram_exp.config.checks import check
from engram_exp.config.derived import (
    capture_of,
    decoder_of,
    exchanges,
    order_of,
    reads_in_order,
    stages_of,
    threads_of,
    usable_cpus,
)
from engram_exp.errors import ConfigError
from engram_exp.machine.environment import gpus

SHARDED = "strategy=sharded", "ranks=2", "worker=process"
BESIDE = ("decoder=matmuls",)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("ranks=0",), "ranks=0: must be at least 1"),
        (("rank_batches=own",), "rank_batches=own: says nothing of one rank; ranks=2 has others"),
        (("ranks=2", "nodes=0"), "nodes=0: must be at least 1"),
        (("nodes=2",), "ranks=1: each of 2 nodes has as many; a multiple would work"),
        (("ranks=3", "nodes=2"), "ranks=3: each of 2 nodes has as many"),
        (("ranks=2", "nodes=2", "strategy=host_shared"), "rendezvous: must be HOST or HOST:PORT of one of the"),
        ((*SHARDED, "nodes=2", "exchange=peer"), "nodes=2: PeerExchange reads memory of the same host alone"),
        (("ranks=2", "rank_batches=each"), "rank_batches=each: must be one of same, own"),
        (("ranks=2", "rank_timeout_s=0"), "rank_timeout_s=0.0: must be above 0"),
        (("ranks=2", "worker=inline"), "worker=inline: is one process, and each rank is one; use process"),
        (("ranks=2", "decoder=tiny"), "decoder: with ranks=2 and rank_batches=same, it is not split over ranks"),
        ((*SHARDED, *BESIDE, "ranks=3"), "ranks=3: 4096 and 2048 channels of product 1, [6144, 4096], are not evenly"),
        ((*SHARDED, *BESIDE, "prefetch.streams=each"), "prefetch.streams=each: exchanges of two layers would be under"),
        ((*SHARDED, *BESIDE, "strategies.15=uva"), "strategies.15=uva: layers of several ranks have one strategy"),
        (("ranks=2", "strategy=disk"), "ranks=2: a table on a disk is read by one rank; strategy=host_shared shares"),
        (("ranks=2", "link_load_gb_per_s=1"), "link_load_gb_per_s=1.0: loads the link of one GPU; use ranks=1"),
        ((*SHARDED, "exchange=none"), "exchange=none: the table is shared out among 2 ranks"),
        ((*SHARDED, "exchange=all_to_all"), "rank_batches=same: AllToAllExchange sends row ids that all ranks know"),
        (("projection=column_parallel",), "projection: ColumnParallelProjection shares the columns out among"),
        ((*SHARDED, "projection=column_parallel", "rank_batches=own"), "projection: ColumnParallelProjection"),
        ((*SHARDED, "lookup=cached"), "lookup: CachedLookup keeps rows of earlier calls"),
        ((*SHARDED, "table.split=rows"), "table.split=rows: AllGatherExchange takes whole columns"),
    ],
)  # fmt: skip
def test_what_ranks_cannot_do_is_refused(configure, overrides, message):
    with pytest.raises(ConfigError) as refused:
        check(configure(*TINY, *overrides))
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("decoder", ["matmuls", "v41_flash_active"])
def test_stand_ins_are_shared_out_with_two_sums_a_layer(configure, decoder, ranks):
    config = configure(*TINY, "strategy=host_shared", f"ranks={ranks}", f"decoder={decoder}")
    check(config)
    whole = decoder_of(config)
    assert whole.among(ranks).arriving_values == pytest.approx(2 * (1 - 1 / ranks) * 2 * whole.hidden_size)


@pytest.mark.parametrize("decoder", ["tiny", "dense_8b", "matmuls"])
def test_ranks_that_ask_for_their_own_have_a_decoder_each(configure, decoder):
    check(configure(*TINY, *SHARDED, f"decoder={decoder}", "rank_batches=own"))


@pytest.mark.skipif(bool(gpus()), reason="needs a machine with fewer GPUs")
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_every_rank_has_a_gpu_of_its_own(configure, device):
    config = configure(*TINY, *SHARDED, f"hardware={device}")
    with pytest.raises(ConfigError, match="ranks=2: each is a GPU of its own, and this machine has 0; hardware=cpu"):
        check(config)
    check(config, here=False)


@pytest.mark.parametrize("strategy", ["sharded", "host_per_rank", "host_shared", "replicated"])
@pytest.mark.parametrize("exchange", ["all_gather", "peer"])
def test_placements_and_exchanges_may_be_crossed(configure, strategy, exchange):
    config = configure(*TINY, "ranks=2", f"strategy={strategy}", f"exchange={exchange}", "dtype=fp8")
    check(config)
    assert exchanges(config) == (strategy in ("sharded", "host_per_rank"))
    assert [stage.name for stage in stages_of(config)] == ["up_ids", "hashing", "lookup", "widening", "projection"]


def test_one_rank_alone_exchanges_nothing(configure):
    config = configure(*TINY, "strategy=sharded")
    check(config)
    assert not exchanges(config)


def test_rows_that_are_exchanged_are_widened_behind_it(configure):
    config = configure(*TINY, *SHARDED, "lookup=triton", "dtype=fp8", "lookup.widen=true")
    assert "widening" in [stage.name for stage in stages_of(config)]


@pytest.mark.parametrize(
    ("overrides", "knows"),
    [
        (("hardware=cuda",), True),
        (("hardware=cpu",), False),
        (("hardware=cuda", "exchange=peer"), False),
        (("hardware=cpu", "lookup=triton"), True),  # in the interpreter
    ],
)
def test_orders_are_those_of_a_kernel_that_reads(configure, overrides, knows):
    config = configure(*TINY, *SHARDED, *overrides)
    assert reads_in_order(config) == knows
    assert order_of(config) == ("as_asked" if knows else "")


def test_ranks_share_the_threads_of_a_host(configure):
    usable = usable_cpus(None)
    assert threads_of(configure(*TINY, *SHARDED)) == max(1, usable // 2)
    assert threads_of(configure(*TINY, *SHARDED, "nodes=2")) == usable
    assert threads_of(configure(*TINY, "ranks=1000")) == 1
    assert threads_of(configure(*TINY, *SHARDED, "hardware.threads=3")) == 3


@pytest.mark.parametrize(("hardware", "capture"), [("cpu", "none"), ("cuda", "graph")])
def test_a_graph_is_captured_on_a_gpu_alone(configure, hardware, capture):
    assert capture_of(configure(*TINY, *SHARDED, f"hardware={hardware}")) == capture
