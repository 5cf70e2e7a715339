"""What decoders cost, by their sizes alone."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from common import ROOT
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from places import CPU
from torch.profiler import ProfilerActivity, profile

from engram_exp.config.options import check_options
from engram_exp.decoder.shape import DecoderCost
from engram_exp.decoder.shapes import DenseShape, MatmulShape
from engram_exp.errors import ConfigError, DoesNotFitError

OPTIONS = sorted(file.stem for file in (ROOT / "conf/decoder").glob("*.yaml") if file.stem != "none")
SMALL = {"layers": 2, "vocab_size": 300}
DENSE = DenseShape(
    layers=3, hidden_size=12, intermediate_size=20, heads=6, kv_heads=2, head_dim=4, vocab_size=40, tied=False,
    rope_theta=1e4, norm_eps=1e-6, context=9, compile=False,
)  # fmt: skip
MATMULS = MatmulShape(
    layers=3, hidden_size=12, products=[[5, 12], [30, 5], [4, 30], [12, 30]], vocab_size=40, tied=False, norm_eps=1e-6
)


def shape_of(option, **changes):
    config = OmegaConf.load(ROOT / f"conf/decoder/{option}.yaml")
    config.update(changes)
    check_options("decoder", config, option, given=())
    return instantiate(config)


def narrowed(shape, times, context):
    """A shape of a part of the width."""
    changes = {"hidden_size": shape.hidden_size // times}
    if isinstance(shape, MatmulShape):
        changes["products"] = [[made // times, read // times] for made, read in shape.products]
    else:
        changes |= {"intermediate_size": shape.intermediate_size // times, "heads": max(2, shape.heads // times)}
        changes |= {"kv_heads": max(1, shape.kv_heads // times), "context": context, "compile": False}
    return replace(shape, **changes)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_builds_and_steps(option):
    """At a sixteenth of its width, with two layers."""
    decoder = narrowed(shape_of(option, **SMALL), 16, context=8).build(2, torch.float32, 0, CPU)
    for tokens in (1, 3):
        step = decoder.step(2, tokens)
        chosen = step.end(step.run(0, 2, step.begin(torch.arange(2 * tokens).view(2, tokens))))
        assert ((chosen >= 0) & (chosen < 300)).all()


@pytest.mark.parametrize(
    ("option", "published_billions"),
    [("dense_4b", 4.02), ("dense_8b", 8.19), ("v41_flash_active", 16.4)],
)
def test_parameters_are_those_that_are_published(option, published_billions):
    cost = DecoderCost(shape_of(option), 1, value_bytes=1)
    assert (cost.weight_bytes + cost.vocabulary_bytes) / 1e9 == pytest.approx(published_billions, abs=0.03)


def real_bytes(tensors):
    return sum(tensor.nbytes for tensor in {tensor.data_ptr(): tensor for tensor in tensors}.values())


@given(
    layers=st.integers(1, 3), kv_heads=st.integers(1, 3), share=st.integers(1, 3), tied=st.booleans(),
    context=st.integers(1, 9), sequences=st.integers(1, 3), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_costs_are_the_sums_over_what_is_built(layers, kv_heads, share, tied, context, sequences, dtype):
    shape = replace(DENSE, layers=layers, kv_heads=kv_heads, heads=kv_heads * share, tied=tied, context=context)
    decoder = shape.build(sequences, dtype, 0, CPU)
    cost = DecoderCost(shape, sequences, dtype.itemsize)
    weights = [parameter for layer in decoder.layers for parameter in layer.parameters()]
    assert cost.weight_bytes == real_bytes(weights)
    assert cost.vocabulary_bytes == real_bytes([decoder.embedding, decoder.head, decoder.norm])
    cached = [tensor for pair in decoder.cache for tensor in pair]
    assert cost.cache_bytes == real_bytes(cached)
    read_whole = real_bytes([*weights, decoder.head, decoder.norm, *cached])
    assert cost.decode_bytes == read_whole + decoder.step(sequences, 1).hidden.nbytes


@pytest.mark.parametrize("tied", [True, False])
def test_costs_of_the_stand_in_are_the_sums_over_what_is_built(tied):
    shape = replace(MATMULS, tied=tied)
    decoder = shape.build(2, torch.bfloat16, 0, CPU)
    cost = DecoderCost(shape, 2, 2)
    assert cost.weight_bytes == real_bytes([product for products in decoder.layers for product in products])
    assert cost.vocabulary_bytes == real_bytes([decoder.embedding, decoder.head, decoder.norm])
    assert cost.cache_bytes == 0


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("shape", [DENSE, MATMULS], ids=["dense", "matmuls"])
def test_operations_are_those_that_pytorch_counts(shape, tokens):
    """PyTorch counts every pair of tokens of a prompt, masked or not."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    step = shape.build(2, torch.float32, 0, CPU).step(2, tokens)
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        step.end(step.run(0, 3, step.begin(torch.zeros(2, tokens, dtype=torch.int64))))
    masked = 0
    if tokens > 1 and shape is DENSE:
        masked = 2 * 3 * 4 * DENSE.heads * DENSE.head_dim * (tokens * (tokens - 1) // 2)
    assert DecoderCost(shape, 2, 4).flops(tokens) + masked == counted.get_total_flops()


def peak_bytes(call):
    """The most memory on the CPU that a call allocates and holds at the same time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize("option", ["dense_4b", "dense_8b", "matmuls", "v41_flash_active"])
def test_a_step_needs_as_much_memory_as_it_says(option):
    """Of an eighth of the width, on enough tokens for what the CPU's kernels need for themselves to be little."""
    shape = narrowed(shape_of(option, **SMALL), 8, context=256)
    step = shape.build(4, torch.bfloat16, 0, CPU).step(4, 256)
    ids = torch.zeros(4, 256, dtype=torch.int64)

    def call():
        step.end(step.run(0, 2, step.begin(ids)))

    call()
    assert 0.9 < peak_bytes(call) / DecoderCost(shape, 4, 2).scratch_bytes(256) < 1.02


@given(layers=st.integers(1, 30), free_bytes=st.integers(0, 2**18), tokens=st.integers(1, 50))
def test_a_decoder_that_does_not_fit_says_how_many_layers_would(layers, free_bytes, tokens):
    def needed(layers):
        return DecoderCost(replace(DENSE, layers=layers), 2, 2).needed_bytes(tokens)

    fit = [count for count in range(1, layers + 1) if needed(count) <= free_bytes]
    cost = DecoderCost(replace(DENSE, layers=layers), 2, 2)
    if layers in fit:
        cost.require_fit(free_bytes, tokens)
        return
    says = f"layers would fit: decoder.layers={fit[-1]}$" if fit else "no layer of the decoder would fit"
    with pytest.raises(DoesNotFitError, match=says) as refused:
        cost.require_fit(free_bytes, tokens)
    assert refused.value.status == "oom_device"


@pytest.mark.parametrize(
    ("shape", "changes", "says"),
    [
        (DENSE, {"layers": 0}, "decoder.layers=0: must be above 0"),
        (DENSE, {"rope_theta": -1.0}, "decoder.rope_theta=-1.0: must be above 0"),
        (DENSE, {"heads": 5}, "decoder.heads=5: must be a multiple of decoder.kv_heads=2"),
        (DENSE, {"head_dim": 3}, "decoder.head_dim=3: must be even"),
        (MATMULS, {"products": []}, "decoder.products=[]: must be a list of [channels made, channels read]"),
        (MATMULS, {"products": [[12]]}, "decoder.products=[[12]]: must be a list of [channels made, channels read]"),
        (MATMULS, {"products": [[7, 12]]}, "the last must make decoder.hidden_size=12 channels"),
        (MATMULS, {"products": [[5, 12], [12, 13]]}, "nothing before product 2 makes the 13 channels that it reads"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(shape, changes, says):
    with pytest.raises(ConfigError) as refused:
        replace(shape, **changes)
    assert says in str(refused.value)
