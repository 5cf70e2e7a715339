import pytest
from asked import tasks_of
from common import demo_geometry

from engram_exp.errors import DoesNotFitError
from engram_exp.steps.lookup.triton import TritonLookup
from engram_exp.steps.projection.linear import LinearProjection
from engram_exp.strategy.footprint import Footprint, Ring, check_fits, footprint

SEQUENCES, TOKENS = 64, 64 * 4096
IDS, ROW_IDS, KV = (TOKENS + SEQUENCES * 2) * 8, TOKENS * 16 * 4, TOKENS * 5120 * 2
WEIGHTS = 5120 * 1024 + 5120 + 4096
ON_GPU = {"table": "host", "hashing": "host", "lookup": "host", "projection": "device"}


def of(tasks, made_up=(), ring=None):
    rotating = [task for task in tasks if task.kind.rotates]
    return footprint(tasks[0].load, tasks, [task for task in tasks if task.load.stage.name in made_up], rotating, ring)


def test_the_footprint_is_the_sum_of_what_is_kept():
    needed = of(tasks_of(ON_GPU))
    assert needed.table_bytes == 10_344_164 * 128
    assert needed.host_bytes == 4 * IDS + 5 * ROW_IDS + needed.table_bytes + 2**29 + WEIGHTS * 6
    assert needed.device_bytes == 2**29 + KV + WEIGHTS * 2
    three = of(tasks_of(ON_GPU, {"projection": LinearProjection}))
    assert three.device_bytes - needed.device_bytes == 2 * KV


def test_a_ring_keeps_a_few_chunks():
    tasks = tasks_of(ON_GPU)
    needed = footprint(tasks[0].load, [], [], [], Ring(tasks, chunk_tokens=1000, depth=2))
    chunk_ids, chunk_rows = 1000 * 16 * 4, 1000 * 16 * 128
    assert needed.host_bytes == 4 * IDS + chunk_ids + 2 * chunk_rows + needed.table_bytes + WEIGHTS * 6
    assert needed.device_bytes == 2 * chunk_rows + KV + WEIGHTS * 2


def test_row_ids_of_the_device_are_kept_whole_and_their_rows_in_a_ring():
    on_device = dict.fromkeys(("hashing", "lookup", "projection"), "device")
    tasks = tasks_of({**on_device, "table": "host"})
    needed = footprint(tasks[0].load, [], [], [], Ring(tasks, chunk_tokens=1000, depth=2))
    assert needed.device_bytes == IDS + ROW_IDS + 2 * 1000 * 16 * 128 + KV + WEIGHTS * 2


def test_a_ring_keeps_all_that_wholes_end_with():
    geometry = demo_geometry(conv_kernel=4, conv_dilation=3)
    for places in (ON_GPU, {**ON_GPU, "projection": "host"}):
        asked = tasks_of(places, geometry=geometry), tasks_of(places, geometry=geometry, fuses=True)
        full, layer = (footprint(tasks[0].load, [], [], [], Ring(tasks, 1000, 2)) for tasks in asked)
        hidden, history = TOKENS * 4 * 1024 * 2, SEQUENCES * 9 * (1024 * 2 + 4 * 4)
        numbers = (1 + 1 + 4) * 4 * 1024
        assert layer.device_bytes - full.device_bytes == 2 * hidden + history + numbers * 2
        assert layer.host_bytes - full.host_bytes == numbers * 6


def test_what_all_stages_of_a_kind_use_counts_once():
    tasks = tasks_of(ON_GPU)
    alone, beside = of(tasks), of(tasks, ring=Ring(tasks, chunk_tokens=1000, depth=2))
    assert beside.table_bytes == alone.table_bytes
    assert beside.host_bytes - alone.host_bytes == 1000 * 16 * 4 + 2 * 1000 * 16 * 128


def test_a_table_counts_where_it_lives_and_a_gpu_may_sort():
    on_device = dict.fromkeys(("hashing", "lookup", "projection"), "device")
    size = {"sequences": 1, "tokens": 100, "batches": 1}
    there, here = (
        of(tasks_of({**on_device, "table": table}, {"lookup": TritonLookup}, **size)) for table in ("device", "host")
    )
    assert there.device_bytes - here.device_bytes == here.host_bytes - there.host_bytes == here.table_bytes
    assert here.device_bytes > 2 * 100 * 16 * 12


@pytest.mark.parametrize(
    ("name", "side", "token_bytes"),
    [("up_embed", "host", 16 * 66), ("widening", "device", 16 * 66), ("projection", "device", 16 * 64 * 2)],
)
def test_made_up_inputs_count(name, side, token_bytes):
    tasks = tasks_of(ON_GPU, geometry=demo_geometry(values_per_scale=32))
    real, made_up = of(tasks), of(tasks, made_up=[name])
    assert getattr(made_up, f"{side}_bytes") - getattr(real, f"{side}_bytes") == TOKENS * token_bytes


@pytest.mark.parametrize(
    ("needed", "says"),
    [
        (Footprint(10**9, 9 * 10**9, 0), "needs 9.00 GB of device memory, 8.00 GB are free: a smaller batch_size"),
        (Footprint(5 * 10**9, 0, 10**9), "needs 5.00 GB of host memory, 4.00 GB are free: a smaller batch_size"),
        (Footprint(11 * 10**9, 0, 10**10), r"needs 11.00 GB of host memory, 4.00 GB are free: model.table_scale=0.26"),
        (
            Footprint(15 * 10**9, 0, 10**10),
            "needs 15.00 GB of host memory, 4.00 GB are free: model.table_scale below 0.4, and a smaller batch_size",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_both_numbers(needed, says):
    with pytest.raises(DoesNotFitError) as refusal:
        check_fits(needed, 4 * 10**9, 8 * 10**9, table_scale=1.0)
    assert str(refusal.value).startswith(says)


def test_where_memory_of_one_node_alone_is_taken_the_key_is_named():
    with pytest.raises(DoesNotFitError, match=r"would need less, and hardware\.numa=1 leaves the memory of one node"):
        check_fits(Footprint(5 * 10**9, 0, 0), 4 * 10**9, 8 * 10**9, 1.0, numa=1)
    with pytest.raises(DoesNotFitError, match=r"device memory(?!.*numa)"):
        check_fits(Footprint(0, 9 * 10**9, 0), 4 * 10**9, 8 * 10**9, 1.0, numa=1)


def test_without_a_device_both_sides_share_the_host():
    needed = Footprint(3 * 10**9, 3 * 10**9, 0)
    check_fits(needed, 4 * 10**9, 4 * 10**9, 1.0)
    with pytest.raises(DoesNotFitError, match=r"needs 6\.00 GB of host memory"):
        check_fits(needed, 4 * 10**9, None, 1.0)


def test_a_remedy_is_a_share_of_the_real_table():
    for free_device, where in ((8 * 10**9, "host"), (None, "device")):
        sides = (11 * 10**9, 0) if where == "host" else (0, 11 * 10**9)
        with pytest.raises(DoesNotFitError, match=r"model\.table_scale=0\.13 would fit"):
            check_fits(Footprint(*sides, 10**10, where), 4 * 10**9, free_device, table_scale=0.5)
