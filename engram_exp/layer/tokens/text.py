"""Ids of real text."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from engram_exp.errors import ConfigError
from engram_exp.layer.cache import cached_array
from engram_exp.layer.corpus import read_pieces
from engram_exp.layer.tokenizer import TokenizerSource
from engram_exp.layer.tokens import Batch, split


class TextTokens:
    """Real text, tokenised once and kept on disk; sequences are cut at seeded positions.

    Args:
        tokenizer: what to tokenise with.
        vocab_size: ids that exist.
        history_len: N - 1.
        cache_dir: where the ids are kept.
        path: the user's text (a file, a folder, JSONL), or None for Python's standard library.
        max_mb: read at most this much text, in 10^6 bytes of UTF-8.
        history: whether sequences carry the ids before them, or start afresh.

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
    ) -> None:
        if not max_mb > 0:
            raise ConfigError("tokens.max_mb", max_mb, "must be above 0")
        self.path = path
        self.history_len = history_len
        self.history = history
        pieces = read_pieces(path, int(max_mb * 1e6))
        digest = hashlib.sha256(tokenizer.fingerprint.encode())
        for piece in pieces:
            digest.update(piece.encode(errors="replace") + b"\0")

        def tokenise() -> np.ndarray:
            encodings = tokenizer.load().encode_batch_fast(pieces, add_special_tokens=False)
            return np.concatenate([np.array(encoding.ids, dtype=np.int32) for encoding in encodings])

        self.corpus = cached_array(cache_dir, f"text-{digest.hexdigest()[:32]}", tokenise)
        if len(self.corpus) and self.corpus.max() >= vocab_size:
            remedy = f"makes ids up to {self.corpus.max()}, and the model has {vocab_size} (model.vocab_size)"
            raise ConfigError("model.tokenizer", tokenizer.name, remedy)

    def __call__(self, batch_size: int, seq_len: int, seed: int) -> Batch:
        """Cut B sequences of L ids.

        Raises:
            ConfigError: the text is shorter than one sequence.
        """
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
        return self.corpus[:tokens].astype(np.int64)
