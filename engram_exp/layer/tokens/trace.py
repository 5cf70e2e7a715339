"""What a server was asked for: the user's own ids of one step after the other, or conversations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from engram_exp.errors import ConfigError
from engram_exp.layer.conversations import read_conversations
from engram_exp.layer.corpus import JSONL
from engram_exp.layer.tokenizer import TokenizerSource
from engram_exp.layer.tokens import NO_TOKEN
from engram_exp.layer.tokens.ids import ARRAYS, checked_ids, load_arrays
from engram_exp.layer.tokens.streams import Streams, cut_streams
from engram_exp.layer.tokens.text import tokenised


class TraceTokens(Streams):
    """Batches cut from a trace in its order.

    Args:
        open_tokenizer: returns what to tokenise conversations with.
        vocab_size: ids that exist.
        history_len: N - 1.
        cache_dir: where the ids of conversations are kept.
        path: a `.npy`, or an `.npz` with `ids`: whole numbers [steps, B, L], B streams, or [tokens], one; or a `.jsonl`
            of conversations (`read_conversations`), one stream.
        prefix_caching: whether a turn of a conversation asks for what is new alone, or for the whole prompt again.
        max_mb: of conversations, stop once so much text is asked for, in 10^6 bytes of UTF-8.
        concurrency: cut the trace into so many streams instead.
        history: whether sequences carry the ids that their stream had before them, or start afresh.

    Raises:
        ConfigError: the file is missing or of another kind, or holds what is no id of the model, or no conversation.
    """

    def __init__(
        self,
        open_tokenizer: Callable[[], TokenizerSource],
        vocab_size: int,
        history_len: int,
        cache_dir: Path,
        path: str | None,
        prefix_caching: bool,
        max_mb: float,
        concurrency: int | None,
        history: bool,
    ) -> None:
        if not max_mb > 0:
            raise ConfigError("tokens.max_mb", max_mb, "must be above 0")
        suffix = Path(path or "").suffix
        if path is None or suffix not in (*ARRAYS, JSONL):
            remedy = f"tokens=trace needs the path of a file {', '.join(ARRAYS)} or {JSONL}"
            raise ConfigError("tokens.path", path, remedy)
        if suffix == JSONL:
            file = Path(path).expanduser()
            texts, asked = read_conversations(file, int(max_mb * 1e6), prefix_caching=prefix_caching)
            ids = tokenised(texts, asked, open_tokenizer(), vocab_size, cache_dir)
        else:
            ids = checked_ids(path, "ids", load_arrays(path)["ids"], vocab_size, ranks=(1, 3)).astype(np.int32)
        if ids.ndim == 3:
            ids = np.moveaxis(ids, 1, 0).reshape(ids.shape[1], -1)
        if ids.ndim == 2 and concurrency is None:
            streams = np.pad(ids, ((0, 0), (history_len, 0)), constant_values=NO_TOKEN)
        else:
            streams = cut_streams(ids.ravel(), 1 if concurrency is None else concurrency, history_len)
        super().__init__(streams, history_len, history, path)
