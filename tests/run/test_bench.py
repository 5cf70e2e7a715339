"""What a run calls and what it reads."""

import pytest
import torch
from common import TINY
from places import DEVICES, bench_of

from engram_exp.run import built as module
from engram_exp.strategy.plan import upload_of


@pytest.mark.slow
@pytest.mark.parametrize("case", ["hashing", "lookup", "full"])
def test_every_call_of_a_case_reads_another_batch(configure, case):
    with torch.inference_mode():
        bench = bench_of(configure(*TINY, "strategy=kv_on_cpu", "schedule=serial"))
        bench.build()
        made = [call()[0].clone() for call in bench.calls(case)]
    assert len(made) == 4
    assert not any(torch.equal(made[i], made[j]) for i in range(4) for j in range(i))


@pytest.mark.slow
def test_the_edge_of_the_first_chunk_is_compared(configure):
    bench = bench_of(configure(*TINY, "batch_size=4", "seq_len=5000", "schedule.chunk_tokens=1111"))
    assert set(range(1111 - 32, 1111 + 32)) <= set(bench.verifier.positions().tolist())


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_timed_batches_are_not_read_before(configure, monkeypatch, device):
    read = []

    build = module.build_whole_run

    def recorded(*arguments):
        whole = build(*arguments)
        return lambda batch: (read.append(batch.ids.clone()), whole(batch))[1]

    monkeypatch.setattr(module, "build_whole_run", recorded)
    strategy = "uva" if device == "cuda" else "kv_on_cpu"
    with torch.inference_mode():
        bench = bench_of(
            configure(*TINY, f"hardware={device}", f"strategy={strategy}", "schedule=serial", "capture=none")
        )
        bench.build()
    assert read
    assert not any(torch.equal(ids, batch.ids) for ids in read for batch in bench.parts.batches[1:])


@pytest.mark.parametrize(("projection", "contiguous"), [("linear", True), ("fused", False)])
def test_made_up_keys_lie_as_the_projection_leaves_them(configure, projection, contiguous):
    bench = bench_of(configure(*TINY, "strategy=kv_on_cpu", "schedule=serial", f"projection={projection}"))
    made_up = bench.built.made_up.input_of(upload_of("kv"))
    (stage,) = (stage for stage in bench.plan.stages if stage.name == "projection")
    keys, value = bench.parts.stage(stage).run((torch.randn(24, 32).to(bench.plan.dtype),))
    assert [tensor.is_contiguous() for tensor in made_up] == [contiguous, contiguous]
    assert [tensor.stride() for tensor in made_up] == [keys.stride(), value.stride()]


@pytest.mark.slow
@pytest.mark.parametrize("value", ["token_ids", "row_ids", "rows", "embeddings", "kv"])
def test_what_is_renewed_is_another_at_every_token_and_in_place(configure, value):
    bench = bench_of(configure(*TINY, "strategy=kv_on_cpu", "dtype=fp8", "schedule=serial", "batch_size=300"))
    tensors = bench.built.made_up.input_of(upload_of(value)) if value != "token_ids" else bench.parts.batches[0]
    before, places = tensors[0].clone(), [tensor.data_ptr() for tensor in tensors]
    bench.built.made_up.renew(value, tensors)
    assert [tensor.data_ptr() for tensor in tensors] == places
    flat, old = (tensor.reshape(300 * 12, -1) for tensor in (tensors[0], before))
    assert (flat != old).any(dim=1).float().mean() > 0.9
    assert bench.plan.geometry.rows > 200, "few rows would often be the same by chance"
