"""What a run calls and compares."""

import pytest
import torch
from common import TINY
from places import CPU, DEVICES

from engram_exp.measure.clock import Clock
from engram_exp.run import bench as flow
from engram_exp.run.bench import Flow
from engram_exp.run.parts import Builder


@pytest.mark.parametrize("case", ["hashing", "lookup", "full"])
def test_every_call_of_a_case_reads_another_batch(configure, case):
    builder = Builder(configure(*TINY, "strategy=kv_on_cpu", "schedule=serial"))
    names = [stage.name for stage in builder.active]
    with torch.inference_mode():
        flow = Flow(builder, names, builder.active, Clock(CPU.device), whole=True)
        flow.build_and_verify()
        made = [call()[0].clone() for call in flow.calls(case)]
    assert len(made) == 4
    assert not any(torch.equal(made[i], made[j]) for i in range(4) for j in range(i))


def test_the_edge_of_the_first_chunk_is_compared(configure):
    builder = Builder(configure(*TINY, "batch_size=4", "seq_len=5000", "schedule.chunk_tokens=1111"))
    flow = Flow(builder, [], builder.active, Clock(CPU.device), whole=True)
    assert set(range(1111 - 32, 1111 + 32)) <= set(flow._compared_tokens().tolist())


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_timed_batches_are_not_read_before(configure, monkeypatch, device):
    read = []

    def recorded(builder, stages, build=flow.build_whole_run):
        whole = build(builder, stages)
        return lambda batch: (read.append(batch.ids.clone()), whole(batch))[1]

    monkeypatch.setattr(flow, "build_whole_run", recorded)
    strategy = "uva" if device == "cuda" else "kv_on_cpu"
    builder = Builder(configure(*TINY, f"hardware={device}", f"strategy={strategy}", "schedule=serial", "capture=none"))
    with torch.inference_mode():
        names = [stage.name for stage in builder.active]
        Flow(builder, names, builder.active, Clock(builder.device), whole=True).build_and_verify()
    assert read
    assert not any(torch.equal(ids, batch.ids) for ids in read for batch in builder.batches[1:])


@pytest.mark.parametrize(("projection", "contiguous"), [("linear", True), ("fused", False)])
def test_made_up_keys_lie_as_the_projection_leaves_them(configure, projection, contiguous):
    builder = Builder(configure(*TINY, "strategy=kv_on_cpu", "schedule=serial", f"projection={projection}"))
    made_up = Flow(builder, [], builder.active, Clock(CPU.device), whole=False)._made_up_input("up_kv")
    keys, value = builder.stage("projection").run((torch.randn(24, 32).to(builder.dtype),))
    assert [tensor.is_contiguous() for tensor in made_up] == [contiguous, contiguous]
    assert [tensor.stride() for tensor in made_up] == [keys.stride(), value.stride()]
