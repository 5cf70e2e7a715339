"""Workloads: where token ids come from.

Every source is called as `(batch_size, seq_len, seed)` and returns a `Batch`; equal arguments give equal ids. Its
`stream(tokens, seed)` returns ids in the order in which a model would meet them, int64, at most so many.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from engram_exp.errors import ConfigError
from engram_exp.layer.cache import cached_array
from engram_exp.layer.corpus import read_pieces
from engram_exp.layer.tokenizer import TokenizerSource

NO_TOKEN = -1  # in a history: before the start of the sequence


class Batch(NamedTuple):
    """Token ids on the CPU.

    ids: int64 [B, L], in [0, vocab).
    history: int64 [B, N - 1], the ids before each sequence, oldest first; -1 before its start.
    """

    ids: torch.Tensor
    history: torch.Tensor


class DrawnTokens(ABC):
    """Sequences cut from a stream of ids that a subclass draws.

    Args:
        history_len: N - 1.
        history: whether sequences are preceded by ids, or start afresh.
    """

    def __init__(self, history_len: int, history: bool) -> None:
        self.history_len, self.history = history_len, history

    def __call__(self, batch_size: int, seq_len: int, seed: int) -> Batch:
        """Draw B sequences of L ids."""
        stream = self.stream(batch_size * (self.history_len + seq_len), seed).reshape(batch_size, -1)
        return _split(stream, self.history_len, self.history)

    @abstractmethod
    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """Draw ids."""


class RandomTokens(DrawnTokens):
    """Ids drawn uniformly: the worst case for every cache.

    Args:
        vocab_size: ids that exist.
        history_len: N - 1.
        share: ids are drawn from the first `share` of the vocabulary, 0 < share <= 1.
        history: whether sequences are preceded by ids, or start afresh.

    Raises:
        ConfigError: `share` out of range.
    """

    def __init__(self, vocab_size: int, history_len: int, share: float, history: bool) -> None:
        if not 0 < share <= 1:
            raise ConfigError("tokens.share", share, "must be above 0 and at most 1")
        super().__init__(history_len, history)
        self.limit = max(1, int(vocab_size * share))

    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """Draw ids."""
        return np.random.default_rng(seed).integers(0, self.limit, size=tokens, dtype=np.int64)


class ZipfTokens(DrawnTokens):
    """Ids drawn independently by Zipf's law: the k-th of them, id k - 1, with a probability proportional to
    1 / k^exponent. Real text repeats whole n-grams, too; this repeats tokens alone.

    Args:
        vocab_size: ids that exist.
        history_len: N - 1.
        exponent: 0 draws uniformly; word frequencies of a language follow about 1.
        history: whether sequences are preceded by ids, or start afresh.

    Raises:
        ConfigError: `exponent` below 0.
    """

    def __init__(self, vocab_size: int, history_len: int, exponent: float, history: bool) -> None:
        if not 0 <= exponent < np.inf:
            raise ConfigError("tokens.exponent", exponent, "must be at least 0")
        super().__init__(history_len, history)
        weights = np.arange(1, vocab_size + 1, dtype=np.float64) ** -exponent
        self.cumulative = np.cumsum(weights) / weights.sum()

    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """Draw ids."""
        drawn = np.random.default_rng(seed).random(tokens)
        ids = np.searchsorted(self.cumulative, drawn, side="right")
        return np.minimum(ids, len(self.cumulative) - 1).astype(np.int64)  # the last sum may round to less than 1


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
        return _split(stream, self.history_len, self.history)

    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """The ids of the text from its beginning on, whatever the seed."""
        return self.corpus[:tokens].astype(np.int64)


class FileTokens:
    """The user's own ids.

    Args:
        vocab_size: ids that exist.
        history_len: N - 1.
        path: a `.npy` of ids, or an `.npz` with `ids` and optionally `history`; whole numbers, [rows, seq_len] and
            [rows, N - 1]. Each further `batch_size` rows make a further batch.
        history: True requires the file to hold `history`, False ignores it, None uses it where it is.

    Raises:
        ConfigError: the file is missing, needs pickles, or holds the wrong rank, dtype, shape or ids.
    """

    def __init__(self, vocab_size: int, history_len: int, path: str | None, history: bool | None) -> None:
        if path is None:
            raise ConfigError("tokens.path", path, "tokens=ids needs the path of a .npy or .npz file")
        self.path = path
        arrays = _load_arrays(Path(path).expanduser())
        if "ids" not in arrays:
            raise ConfigError("tokens.path", path, f"has no array `ids`, only {sorted(arrays)}")
        self.ids = self._checked("ids", arrays["ids"], 0, vocab_size)
        if history and "history" not in arrays:
            raise ConfigError("tokens.history", history, f"{path} holds no array `history`")
        if history is not False and "history" in arrays:
            self.history = self._checked("history", arrays["history"], NO_TOKEN, vocab_size)
        else:
            self.history = np.full((len(self.ids), history_len), NO_TOKEN, dtype=np.int64)
        if self.history.shape != (len(self.ids), history_len):
            raise ConfigError(
                "tokens.path", path, f"`history` is {self.history.shape}, not {(len(self.ids), history_len)}"
            )

    def _checked(self, name: str, array: np.ndarray, least: int, vocab_size: int) -> np.ndarray:
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
            raise ConfigError(
                "tokens.path", self.path, f"`{name}` is {array.dtype} {array.shape}, not whole numbers of rank 2"
            )
        if array.size and (array.min() < least or array.max() >= vocab_size):
            raise ConfigError(
                "tokens.path",
                self.path,
                f"`{name}` holds {array.min()} to {array.max()}, outside of {least} to {vocab_size - 1}",
            )
        return array.astype(np.int64)

    def __call__(self, batch_size: int, seq_len: int, seed: int) -> Batch:
        """Return the `seed`-th block of B rows, starting over after the last.

        Raises:
            ConfigError: the file does not hold B rows of L ids.
        """
        rows, columns = self.ids.shape
        if rows < batch_size or columns != seq_len:
            raise ConfigError(
                "tokens.path",
                self.path,
                f"`ids` is [{rows}, {columns}], not at least batch_size={batch_size} rows of seq_len={seq_len}",
            )
        first = seed % (rows // batch_size) * batch_size
        block = slice(first, first + batch_size)
        return Batch(torch.from_numpy(self.ids[block]), torch.from_numpy(self.history[block]))

    def stream(self, tokens: int, seed: int) -> np.ndarray:
        """The file's rows behind each other from its beginning on, whatever the seed."""
        return self.ids.ravel()[:tokens]


def distinct_batches(
    source: Callable[[int, int, int], Batch], seeds: Iterable[int], shape: tuple[int, int]
) -> list[Batch]:
    """A batch of [B, L] ids for each seed, but no two the same: a file of ids may hold fewer."""
    drawn = (source(*shape, seed) for seed in seeds)
    return list({tuple(tensor.numpy().tobytes() for tensor in batch): batch for batch in drawn}.values())


def _split(stream: np.ndarray, history_len: int, keep_history: bool) -> Batch:
    history, ids = stream[:, :history_len].copy(), stream[:, history_len:].copy()
    if not keep_history:
        history.fill(NO_TOKEN)
    return Batch(torch.from_numpy(ids), torch.from_numpy(history))


def _load_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"ids": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise ConfigError("tokens.path", path, "no such file") from None
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError("tokens.path", path, f"is not a .npy or .npz without pickles ({error})") from error
