"""Steps of a model on a GPU: every wait between streams is needed, and no case runs what belongs to another."""

from functools import partial

import pytest
import torch
from common import TINY
from in_step import CASES, DECODE, bench_of, statuses

from engram_exp.steps.lookup.cached_copy import CachedCopyLookup
from engram_exp.steps.lookup.triton import TritonLookup
from engram_exp.steps.projection.fused import FusedProjection
from engram_exp.steps.upload.pinned import PinnedUpload
from engram_exp.strategy.fetch import DeviceFetch, HostFetch, StepIds
from engram_exp.strategy.schedule import Replay

A_WHILE = 20_000_000  # cycles of a GPU: some 10 ms


def slowed(original):
    def slow(self, tensors):
        torch.cuda._sleep(A_WHILE)
        return original(self, tensors)

    return slow


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("options", "component", "owner", "wait"),
    [
        (("strategy=kv_on_gpu",), PinnedUpload, HostFetch, "decoder_waits"),
        (("strategy=kv_on_cpu", "fusion=gated_conv"), PinnedUpload, HostFetch, "decoder_waits"),
        (("strategy=uva",), TritonLookup, DeviceFetch, "decoder_waits"),
        (("strategy=device",), TritonLookup, DeviceFetch, "decoder_waits"),
        (("strategy=uva", "seq_len=12", "prefetch.lead=previous_step"), TritonLookup, DeviceFetch, "decoder_waits"),
    ],
)
def test_delays_change_nothing_as_long_as_a_step_waits(run_inline, monkeypatch, options, component, owner, wait):
    arguments = ("hardware=cuda", *DECODE, *options, CASES)
    monkeypatch.setattr(component, "__call__", slowed(component.__call__))
    assert statuses(run_inline(*arguments))["step"] == "ok"
    monkeypatch.setattr(owner, wait, lambda *_: None)
    assert statuses(run_inline(*arguments))["step"] == "mismatch"


@pytest.mark.accelerator
@pytest.mark.parametrize(
    ("strategy", "component", "wait", "without"),
    [
        ("kv_on_gpu", PinnedUpload, "on_host", lambda ids: ids.taken),
        ("uva", FusedProjection, "stream_waits", lambda *_: None),
    ],
)
@pytest.mark.parametrize("waits", [True, False])
def test_steps_follow_each_other_without_the_host(configure, monkeypatch, strategy, component, wait, without, waits):
    """The second of two steps in flight waits for what the first still reads, and leaves its result alone."""
    monkeypatch.setattr(component, "__call__", slowed(component.__call__))
    with torch.inference_mode():
        bench = bench_of(configure(*TINY, f"strategy={strategy}", "hardware=cuda", *DECODE, "ids=host", CASES))
        first, second = (partial(bench.built.runs["step"], batch) for batch in bench.built.batches[:2])
        want = [[tensor.clone() for tensor in call()] for call in (first, second)]
        torch.cuda.synchronize()
        if not waits:
            monkeypatch.setattr(StepIds, wait, without)
        got = []
        for call in (first, second):
            got.append([tensor.clone() for tensor in call()])  # copied on the stream, without waiting
        torch.cuda.synchronize()
    same = all(torch.equal(*pair) for steps in zip(got, want, strict=True) for pair in zip(*steps, strict=True))
    assert same == waits


def told(original, called):
    def telling(self, tensors):
        called.append(type(self))
        return original(self, tensors)

    return telling


@pytest.mark.accelerator
@pytest.mark.parametrize("where", ["beside", "inline"])
def test_the_host_waits_for_what_misses_once_the_layers_before_are_launched(configure, monkeypatch, where):
    cached = "strategy=cached_copy", "lookup.gb=0.001", f"prefetch.where={where}"
    with torch.inference_mode():
        bench = bench_of(configure(*TINY, *cached, "hardware=cuda", *DECODE, CASES))
        called = []
        for kind in (CachedCopyLookup, Replay):
            monkeypatch.setattr(kind, "__call__", told(kind.__call__, called))
        bench.built.runs["step"](bench.built.batches[0])
        torch.cuda.synchronize()
    assert called == [Replay, CachedCopyLookup, Replay, CachedCopyLookup, Replay]


@pytest.mark.accelerator
def test_no_kernel_of_a_layer_runs_in_the_decoder_alone(configure):
    with torch.inference_mode():
        bench = bench_of(configure(*TINY, "strategy=uva", "hardware=cuda", *DECODE, "fusion=gated_conv", CASES))
        kernels = {}
        for case in ("decoder", "ready", "step"):
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                bench.timed(case).calls[0]()
                torch.cuda.synchronize()
            kernels[case] = [event.key for event in profile.key_averages()]
    fetching, computing = {"_hash_kernel", "_gather_kernel"}, {"_gate_and_convolve_kernel"}
    assert (fetching | computing) <= set(kernels["step"])
    assert computing <= set(kernels["ready"])
    assert not fetching & set(kernels["ready"])
    assert not (fetching | computing) & set(kernels["decoder"])
