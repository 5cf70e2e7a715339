"""The dense decoder is transformers' own Qwen3, in other buffers."""

import gc
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU, DEVICES
from transformers import DynamicCache
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM

from engram_exp.decoder.qwen3 import config_of
from engram_exp.decoder.shapes import DenseShape
from engram_exp.errors import ConfigError
from engram_exp.machine.placement import Placement

SHAPE = DenseShape(
    layers=3, hidden_size=32, intermediate_size=48, heads=4, kv_heads=2, head_dim=16, vocab_size=100, tied=False,
    rope_theta=1e6, norm_eps=1e-6, context=12, compile=False,
)  # fmt: skip
SEQUENCES = 3


def built(shape=SHAPE, dtype=torch.float32, placement=CPU, seed=0):
    return shape.build(SEQUENCES, dtype, seed, placement)


def ids_of(sequences, tokens, seed=0):
    return torch.randint(100, (sequences, tokens), generator=torch.Generator().manual_seed(seed))


def published(decoder):
    """Transformers' own model with a decoder's weights, its three and two matrices apart."""
    shape = decoder.shape
    own = Qwen3ForCausalLM(config_of(shape)).eval().requires_grad_(False)
    weights = {"model.embed_tokens.weight": decoder.embedding, "lm_head.weight": decoder.head}
    weights["model.norm.weight"] = decoder.norm
    for number, layer in enumerate(decoder.layers):
        for name, weight in layer.state_dict().items():
            parts, rows = [name], [len(weight)]
            if "qkv_proj" in name:
                parts = [name.replace("qkv_proj", f"{part}_proj") for part in "qkv"]
                rows = [heads * shape.head_dim for heads in (shape.heads, shape.kv_heads, shape.kv_heads)]
            elif "gate_up_proj" in name:
                parts = [name.replace("gate_up_proj", f"{part}_proj") for part in ("gate", "up")]
                rows = [shape.intermediate_size] * 2
            weights |= {f"model.layers.{number}.{part}": of for part, of in zip(parts, weight.split(rows), strict=True)}
    own.load_state_dict(weights)
    return own


def cached_of(decoder, sequences):
    """What transformers' own cache holds before a decode step: all but the last place."""
    cache = DynamicCache(config=config_of(decoder.shape))
    for number, (keys, values) in enumerate(decoder.cache):
        cache.update(keys[:sequences, :, :-1].clone(), values[:sequences, :, :-1].clone(), number)
    return cache


def with_gains(decoder):
    """Norms whose gains are not one, or else a gain that is left out would not show."""
    for number, gain in enumerate([decoder.norm, *(p for x in decoder.layers for p in x.parameters() if p.dim() == 1)]):
        gain.normal_(1, 0.2, generator=torch.Generator().manual_seed(number))
    return decoder


def equal(mine, theirs):
    torch.testing.assert_close(mine.view(theirs.shape), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("sequences", "tokens"), [(3, 12), (2, 5), (3, 1), (1, 1)])
def test_a_step_is_that_of_transformers(sequences, tokens, tied):
    decoder = with_gains(built(replace(SHAPE, tied=tied)))
    ids, step = ids_of(sequences, tokens), decoder.step(sequences, tokens)
    cache = cached_of(decoder, sequences) if tokens == 1 else DynamicCache(config=config_of(SHAPE))
    theirs = published(decoder)(ids, past_key_values=cache, output_hidden_states=True)
    hidden = step.begin(ids)
    equal(hidden, theirs.hidden_states[0])
    for layer in range(2):
        hidden = step.run(layer, layer + 1, hidden)
        equal(hidden, theirs.hidden_states[layer + 1])
    hidden = step.run(2, 3, hidden)
    normed = torch.nn.functional.rms_norm(hidden, (32,), decoder.norm, SHAPE.norm_eps)
    equal(normed, theirs.hidden_states[3])
    assert step.end(hidden).tolist() == theirs.logits[:, -1].argmax(-1).tolist()
    places = slice(None) if tokens == 1 else slice(tokens)
    for mine, layer in zip(decoder.cache, cache.layers, strict=True):
        equal(mine[0][:sequences, :, places], layer.keys)
        equal(mine[1][:sequences, :, places], layer.values)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 3), max_size=4), tokens=st.sampled_from([1, 4]), seed=st.integers(0, 99))
def test_a_step_that_is_cut_makes_the_same(cuts, tokens, seed):
    step = DECODER.step(SEQUENCES, tokens)
    ids = ids_of(SEQUENCES, tokens, seed)
    whole = step.run(0, 3, step.begin(ids))
    hidden, first = step.begin(ids), 0
    for end in sorted([*cuts, 3]):
        hidden, first = step.run(first, end, hidden), end
    assert torch.equal(hidden, whole)


DECODER = built()


def living_bytes():
    gc.collect()
    return sum(each.nbytes for each in gc.get_objects() if isinstance(each, torch.Tensor))


@pytest.mark.parametrize("tokens", [1, 6])
def test_a_step_that_is_repeated_makes_the_same_in_the_same_memory(tokens):
    step = built().step(SEQUENCES, tokens)

    def call():
        begun = step.begin(ids_of(SEQUENCES, tokens))
        hidden = step.run(0, 3, begun)
        return begun.data_ptr(), hidden, step.end(hidden)

    begun, hidden, chosen = call()
    kept, first = chosen.data_ptr(), chosen.tolist()
    living = living_bytes()
    for _ in range(3):
        again = call()
        assert torch.equal(again[1], hidden)
        assert (again[0], again[2].data_ptr(), again[2].tolist()) == (begun, kept, first)
        del again
    assert living_bytes() == living


def test_a_decode_step_reads_the_whole_context():
    decoder = built(replace(SHAPE, layers=1))
    step, ids = decoder.step(SEQUENCES, 1), ids_of(SEQUENCES, 1)
    before = step.run(0, 1, step.begin(ids))
    for place in (0, 5, 10):
        decoder.cache[0][1][:, :, place] += 1
        after = step.run(0, 1, step.begin(ids))
        assert not torch.allclose(after, before)
        before = after


def test_equal_seeds_give_equal_decoders():
    first, same, other = (built(seed=seed).layers[2].mlp.down_proj.weight for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("tokens", [1, 8])
def test_hidden_states_stay_of_one_size_through_many_layers(tokens):
    shape = replace(SHAPE, layers=36, hidden_size=128, intermediate_size=256)
    step = built(shape, torch.bfloat16).step(SEQUENCES, tokens)
    hidden = step.begin(ids_of(SEQUENCES, tokens))
    for layer in range(36):
        hidden = step.run(layer, layer + 1, hidden)
        assert 0.01 < hidden.float().square().mean().sqrt() < 2
    different = len(hidden.float().round(decimals=3).unique(dim=0))
    assert different == SEQUENCES * tokens


def test_what_is_not_built_is_refused():
    decoder = built()
    with pytest.raises(ConfigError, match=r"^decoder\.context=12: prompts have 13 tokens; set it to that, or more$"):
        decoder.step(1, 13)
    with pytest.raises(ValueError, match="4 sequences; the decoder was built for 1 to 3"):
        decoder.step(4, 1)
    step = decoder.step(2, 1)
    for first, end in ((0, 4), (-1, 2), (2, 1)):
        with pytest.raises(IndexError, match="of a decoder in which 3 are built"):
            step.run(first, end, step.hidden)


@pytest.mark.slow
def test_compiled_layers_make_the_same_and_are_compiled_once_a_shape(monkeypatch):
    plain = built()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)  # of which a decoder makes more
    compiled = built(replace(SHAPE, compile=True))
    for sequences, tokens in ((3, 1), (3, 6), (2, 1)):
        ids = ids_of(sequences, tokens)
        want, made = (
            step.run(0, 3, step.begin(ids)) for step in (d.step(sequences, tokens) for d in (plain, compiled))
        )
        equal(made, want)
        for mine, theirs in zip(compiled.cache, plain.cache, strict=True):
            equal(mine[0], theirs[0])
            equal(mine[1], theirs[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3


def captured(step, ids):
    """Two graphs of a step, cut behind its first layer, and what they make."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step.end(step.run(1, 3, step.run(0, 1, step.begin(ids))))
    torch.cuda.synchronize()
    first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(first):
        cut = step.run(0, 1, step.begin(ids))
    with torch.cuda.graph(second):
        hidden = step.run(1, 3, cut)
        chosen = step.end(hidden)
    return first, second, hidden, chosen


@pytest.mark.accelerator
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("tokens", [1, 8])
def test_graphs_replay_what_is_computed_without_them(tokens, compile):
    """Of head size 128, as real decoders, for which there are flash kernels; also on ids that come later."""
    shape = replace(SHAPE, head_dim=128, hidden_size=256, compile=compile)
    step = built(shape, torch.bfloat16, Placement(torch.device("cuda"))).step(SEQUENCES, tokens)
    ids = ids_of(SEQUENCES, tokens).cuda()
    first, second, hidden, chosen = captured(step, ids)
    for seed in (1, 2):
        ids.copy_(ids_of(SEQUENCES, tokens, seed))
        want = step.run(0, 3, step.begin(ids))
        choice = step.end(want).clone()
        hidden.fill_(float("nan"))
        chosen.fill_(-1)
        first.replay()
        second.replay()
        assert torch.equal(hidden, want)
        assert torch.equal(chosen, choice)


@pytest.mark.parametrize("device", DEVICES)
def test_cached_keys_are_written_where_they_are_read(device):
    """The place of a decode step's token is its sequence's last one, whatever stood there before."""
    decoder = built(placement=Placement(torch.device(device)))
    step, ids = decoder.step(SEQUENCES, 1), ids_of(SEQUENCES, 1).to(device)
    before = step.run(0, 3, step.begin(ids))
    for pair in decoder.cache:
        for tensor in pair:
            tensor[:, :, -1].fill_(float("nan"))
    assert torch.equal(step.run(0, 3, step.begin(ids)), before)
