"""Ids of real text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engram_exp.errors import ConfigError
from engram_exp.layer.cache import cached_array
from engram_exp.layer.corpus import read_pieces
from engram_exp.layer.tokenizer import TokenizerSource
from engram_exp.layer.tokens import Batch, split
from engram_exp.layer.tokens.streams import Streams, cut_streams


class TextTokens:
    """Real text, tokenised once and kept on disk; sequences are cut at seeded positions, or continue streams.

    Args:
        tokenizer: what to tokenise with.
        vocab_size: ids that exist.
        history_len: N - 1.
        cache_dir: where the ids are kept.
        path: the user's text (a file, a folder, JSONL), or None for Python's standard library.
        max_mb: read at most this much text, in 10^6 bytes of UTF-8.
        history: whether sequences carry the ids before them, or start afresh.
        concurrency: streams that sequences continue in turn (`Streams`); None: each is cut at a seeded position.

    Raises:
        ConfigError: the text is missing or empty, or the tokenizer makes ids that the model has not.
    """

    def __init__(
        self,
        tokenizer: TokenizerSource,
        vocab_size: int,
        history_len: int,
        cache_dir: Path,
        path: str | None,
        max_mb: float,
        history: bool,
        concurrency: int | None = None,
    ) -> None:
        if not max_mb > 0:
            raise ConfigError("tokens.max_mb", max_mb, "must be above 0")
        self.path = path
        self.history_len = history_len
        self.history = history
        pieces = read_pieces(path, int(max_mb * 1e6))
        self.corpus = tokenised(pieces, range(len(pieces)), tokenizer, vocab_size, cache_dir)
        self.streams = None
        if concurrency is not None:
            cut = cut_streams(self.corpus, concurrency, history_len)
            self.streams = Streams(cut, history_len, history, path)

    def __call__(self, batch_size: int, seq_len: int, seed: int) -> Batch:
        """Cut B sequences of L ids.

        Raises:
            ConfigError: the text is shorter than one sequence, or its streams than one batch.
        """
        if self.streams is not None:
            return self.streams(batch_size, seq_len, seed)
        length = self.history_len + seq_len
        if len(self.corpus) < length:
            raise ConfigError(
                "tokens.path", self.path, f"holds {len(self.corpus)} tokens, fewer than a sequence of seq_len={seq_len}"
            )
        starts = np.random.default_rng(seed).integers(0, len(self.corpus) - length + 1, size=(batch_size, 1))
        stream = self.corpus[starts + np.arange(length)].astype(np.int64)
        return split(stream, self.history_len, self.history)

    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """The ids of the text from its beginning on, whatever the seed."""
        return self.streams.stream(tokens, seed) if self.streams else self.corpus[:tokens].astype(np.int64)


def tokenised(
    pieces: Sequence[str], order: Sequence[int], tokenizer: TokenizerSource, vocab_size: int, cache_dir: Path
) -> np.ndarray:
    """Ids of texts behind each other, int32 [T], kept on disk.

    Args:
        pieces: each is tokenised by itself, and once.
        order: numbers of pieces, as their ids follow each other; a piece may come again.
        tokenizer: what to tokenise with.
        vocab_size: ids that exist.
        cache_dir: where the ids are kept.

    Raises:
        ConfigError: the tokenizer makes ids that the model has not.
    """
    digest = hashlib.sha256(tokenizer.fingerprint.encode())
    for piece in pieces:
        digest.update(piece.encode(errors="replace") + b"\0")
    digest.update(np.array(order, dtype=np.int64).tobytes())

    def tokenise() -> np.ndarray:
        encodings = tokenizer.load().encode_batch_fast(pieces, add_special_tokens=False)
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return np.concatenate([ids[number] for number in order])

    found = cached_array(cache_dir, f"text-{digest.hexdigest()[:32]}", tokenise)
    if len(found) and found.max() >= vocab_size:
        remedy = f"makes ids up to {found.max()}, and the model has {vocab_size} (model.vocab_size)"
        raise ConfigError("model.tokenizer", tokenizer.name, remedy)
    return found
