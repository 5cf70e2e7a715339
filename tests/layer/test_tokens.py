import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_exp.config.derived import batches_of
from engram_exp.errors import ConfigError
from engram_exp.layer.corpus import read_pieces
from engram_exp.layer.tokenizer import BUNDLED, open_tokenizer
from engram_exp.layer.tokens import NO_TOKEN, distinct_batches
from engram_exp.layer.tokens.ids import FileTokens
from engram_exp.layer.tokens.random import RandomTokens
from engram_exp.layer.tokens.text import TextTokens
from engram_exp.layer.tokens.zipf import ZipfTokens


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(BUNDLED)


def text_tokens(tokenizer, cache_dir, path=None, *, history=False, max_mb=0.2, vocab_size=129_280):
    path = None if path is None else str(path)
    return TextTokens(tokenizer, vocab_size, 2, cache_dir, path, max_mb, history)


def test_text_in_ids_that_the_model_has_not_is_refused(tokenizer, cache_dir):
    most = int(text_tokens(tokenizer, cache_dir).corpus.max())
    assert text_tokens(tokenizer, cache_dir, vocab_size=most + 1).corpus.max() == most
    says = rf"^model\.tokenizer={BUNDLED}: makes ids up to {most}, and the model has {most} \(model\.vocab_size\)$"
    with pytest.raises(ConfigError, match=says):
        text_tokens(tokenizer, cache_dir, vocab_size=most)


@settings(max_examples=30, deadline=None)
@given(
    vocab=st.integers(1, 1000),
    history_len=st.integers(0, 4),
    share=st.floats(0.001, 1),
    history=st.booleans(),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9)),
    seed=st.integers(0, 2**31),
)
def test_random_ids_keep_the_contract(vocab, history_len, share, history, shape, seed):
    source = RandomTokens(vocab, history_len, share, history)
    assert source(*shape, seed).ids.max() < max(1, int(vocab * share))
    keeps_the_contract(source, vocab, history_len, history, shape, seed)


@settings(max_examples=30, deadline=None)
@given(
    vocab=st.integers(1, 1000),
    history_len=st.integers(0, 4),
    exponent=st.floats(0, 3),
    history=st.booleans(),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9)),
    seed=st.integers(0, 2**31),
)
def test_ids_by_zipfs_law_keep_the_contract(vocab, history_len, exponent, history, shape, seed):
    keeps_the_contract(ZipfTokens(vocab, history_len, exponent, history), vocab, history_len, history, shape, seed)


@pytest.mark.parametrize("exponent", [0, 1, 1.5])
def test_ids_come_as_often_as_zipf_says(exponent):
    stream = ZipfTokens(50, 2, exponent, False).stream(200_000, seed=1)
    weights = np.arange(1, 51) ** -float(exponent)
    assert np.bincount(stream, minlength=50) / len(stream) == pytest.approx(weights / weights.sum(), abs=0.005)


def keeps_the_contract(source, vocab, history_len, history, shape, seed):
    batch, again = source(*shape, seed), source(*shape, seed)
    assert batch.ids.dtype == batch.history.dtype == torch.int64
    assert batch.ids.shape == shape
    assert batch.history.shape == (shape[0], history_len)
    assert batch.ids.min() >= 0
    assert batch.ids.max() < vocab
    assert ((batch.history >= 0) if history else (batch.history == NO_TOKEN)).all()
    assert torch.equal(batch.ids, again.ids)
    assert torch.equal(batch.history, again.history)


@pytest.mark.slow
def test_text_is_cut_from_one_stream_with_the_ids_before_it(tokenizer, cache_dir):
    source = text_tokens(tokenizer, cache_dir, history=True)
    ids, history = source(5, 50, seed=3)
    corpus = source.corpus
    assert corpus.max() < tokenizer.load().get_vocab_size()
    for row in range(5):
        sequence = torch.cat([history[row], ids[row]]).numpy()
        starts = np.flatnonzero(corpus == sequence[0])
        assert any(np.array_equal(corpus[s : s + 52], sequence) for s in starts)
    assert not torch.equal(source(5, 50, seed=4).ids, ids)


@pytest.mark.slow
def test_the_default_text_is_real_python_and_prose(tokenizer, cache_dir):
    text = tokenizer.load().decode(text_tokens(tokenizer, cache_dir, max_mb=1.5).corpus.tolist())
    assert "Assert statements are a convenient way" in text
    assert "import " in text
    assert "def " in text


def test_tokenised_text_is_kept(tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("one two three four five six seven")
    first = text_tokens(tokenizer, tmp_path / "cache", tmp_path / "a.txt").corpus
    frozen = open_tokenizer(BUNDLED)
    object.__setattr__(frozen, "load", lambda: pytest.fail("tokenised again"))
    assert np.array_equal(text_tokens(frozen, tmp_path / "cache", tmp_path / "a.txt").corpus, first)


@pytest.mark.slow
def test_the_default_text_is_longer_than_a_default_batch(tokenizer, tmp_path):
    assert len(text_tokens(tokenizer, tmp_path, max_mb=4.0).corpus) > 64 * 4096 * 3


def test_folders_and_jsonl_are_read_in_order(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n\n{"text": "and a half", "other": 1}\n')
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/index").write_bytes(b"\xff")
    assert read_pieces(str(tmp_path), 1000) == ["first", "and a half", "second"]


def test_text_is_cut_at_line_ends_and_at_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("engram_exp.layer.corpus.PIECE_CHARACTERS", 5)
    (tmp_path / "a.txt").write_text("0123456\n89\n\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9")
    assert "".join(read_pieces(str(tmp_path), 1000)) == "0123456\n89\n\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9\u00e9"
    assert read_pieces(str(tmp_path), 1000)[0] == "0123456\n"
    assert read_pieces(str(tmp_path), 14) == ["0123456\n", "89\n\u00e9"]  # half a character is left out


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, "no such file or folder"),
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\n", "holds no text"),
        ("binary.txt", b"abc\xff\xfe", "not UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("keyless.jsonl", b'{"body": "a"}\n', "line 1 has no text under 'text'"),
        ("list.jsonl", b"[1]\n", "line 1 has no text"),
    ],
)
def test_unusable_text_is_refused(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^tokens\.path=.*{says}"):
        read_pieces(str(tmp_path / name), 1000)


@pytest.mark.slow
def test_text_shorter_than_a_sequence_is_refused(tokenizer, cache_dir, tmp_path):
    (tmp_path / "a.txt").write_text("too short")
    with pytest.raises(ConfigError, match=r"tokens\.path=.*holds 2 tokens, fewer than a sequence of seq_len=100"):
        text_tokens(tokenizer, cache_dir, tmp_path / "a.txt")(1, 100, 0)


@pytest.mark.parametrize(("key", "value"), [("share", 0.0), ("share", 1.5)])
def test_options_out_of_range_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"^tokens\.{key}={value}"):
        RandomTokens(10, 2, value, False)


def test_no_text_at_all_is_refused(tokenizer, cache_dir):
    with pytest.raises(ConfigError, match=r"^tokens\.max_mb=0"):
        text_tokens(tokenizer, cache_dir, max_mb=0)


def file_tokens(path, history=None, vocab=100, history_len=2):
    return FileTokens(vocab, history_len, str(path), history)


def test_ids_of_a_file_become_batches_in_turn(tmp_path):
    ids = np.arange(40, dtype=np.int32).reshape(10, 4)
    np.save(tmp_path / "ids.npy", ids)
    batches = distinct_batches(file_tokens(tmp_path / "ids.npy"), range(4), (4, 4))
    assert [batch.ids[0, 0].item() for batch in batches] == [0, 16]
    assert (batches[0].history == NO_TOKEN).all()
    assert batches[0].ids.dtype == torch.int64


def test_history_of_a_file_is_used_required_or_ignored(tmp_path):
    ids, history = np.ones((2, 3), np.int64), np.array([[-1, 5], [6, 7]])
    np.savez(tmp_path / "both.npz", ids=ids, history=history)
    np.savez(tmp_path / "ids.npz", ids=ids)
    for wanted in (None, True):
        assert file_tokens(tmp_path / "both.npz", wanted)(2, 3, 0).history.tolist() == history.tolist()
    assert (file_tokens(tmp_path / "both.npz", False)(2, 3, 0).history == NO_TOKEN).all()
    assert (file_tokens(tmp_path / "ids.npz", None)(2, 3, 0).history == NO_TOKEN).all()
    with pytest.raises(ConfigError, match=r"^tokens\.history=True.*no array `history`"):
        file_tokens(tmp_path / "ids.npz", True)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones(5, np.int64), "int64 (5,), not whole numbers of rank 2"),
        (np.ones((1, 2, 3), np.int64), "not whole numbers of rank 2"),
        (np.ones((2, 3)), "float64 (2, 3), not whole numbers"),
        (np.full((2, 3), 100), "holds 100 to 100, outside of 0 to 99"),
        (np.full((2, 3), -1), "holds -1 to -1, outside of 0 to 99"),
        (np.array([[{"a": 1}]], dtype=object), "without pickles"),
        (np.ones((1, 3), np.int64), "is [1, 3], not at least batch_size=2 rows of seq_len=3"),
        (np.ones((2, 4), np.int64), "is [2, 4], not at least batch_size=2 rows of seq_len=3"),
    ],
)
def test_unusable_ids_are_refused(tmp_path, array, says):
    np.save(tmp_path / "ids.npy", array, allow_pickle=True)
    with pytest.raises(ConfigError) as refusal:
        file_tokens(tmp_path / "ids.npy")(2, 3, 0)
    assert str(refusal.value).startswith("tokens.path=")
    assert says in str(refusal.value)


@pytest.mark.parametrize("history", [np.ones((2, 3), int), np.ones((1, 2), int), np.full((2, 2), -2), np.ones((2, 2))])
def test_unusable_histories_are_refused(tmp_path, history):
    np.savez(tmp_path / "both.npz", ids=np.ones((2, 3), int), history=history)
    with pytest.raises(ConfigError, match=r"^tokens\.path=.*`history`"):
        file_tokens(tmp_path / "both.npz")


@pytest.mark.parametrize("content", [None, b"", b"not an array", b"PK\x03\x04"])
def test_files_that_are_no_arrays_are_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "ids.npy").write_bytes(content)
    with pytest.raises(ConfigError, match=r"^tokens\.path="):
        file_tokens(tmp_path / "ids.npy")


def test_an_npz_without_ids_and_no_path_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", tokens=np.ones((2, 3), int))
    with pytest.raises(ConfigError, match=r"has no array `ids`, only \['tokens'\]"):
        file_tokens(tmp_path / "other.npz")
    with pytest.raises(ConfigError, match=r"^tokens\.path: "):
        FileTokens(10, 2, None, None)


def test_pickled_files_are_not_executed(tmp_path):
    import pickle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (tmp_path / "ids.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ConfigError, match="without pickles"):
        file_tokens(tmp_path / "ids.npy")
    assert not (tmp_path / "sprung").exists()


def test_jsonl_text_survives_any_unicode(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a\ud800b\u00e9"}) + "\n")  # a lone surrogate
    assert read_pieces(str(tmp_path / "a.jsonl"), 100) == ["a?b\u00e9"]


@pytest.mark.slow
def test_batches_are_as_many_as_leave_a_cache(configure):
    assert batches_of(configure("batches=7")) == 7
    assert batches_of(configure("batch_size=64", "seq_len=4096")) == 4
    assert batches_of(configure("batch_size=1", "seq_len=8192")) == 64
    assert batches_of(configure("batch_size=1", "seq_len=8192", "graph_calls=7")) == 63, "as fill graphs"
    assert batches_of(configure("batches=7", "graph_calls=3")) == 7
    assert batches_of(configure("batch_size=64", "seq_len=4096", "graph_calls=8")) == 4
    assert batches_of(configure("shape=decode")) == 256
    v41 = ("model=deepseek_v41_flash", "dtype=fp8", "seq_len=1", "pause_ms=2")
    assert batches_of(configure(*v41, "batch_size=64")) == 2**30 // (64 * 24 * 264)
    assert batches_of(configure(*v41, "batch_size=1")) == 4096
