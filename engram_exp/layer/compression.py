"""Token compression: ids whose text is the same but for case, accents and white space share one compressed id.

Section 2.2 of arXiv 2601.07372.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import Regex, Tokenizer, normalizers

from engram_exp.errors import ConfigError
from engram_exp.layer.cache import cached_array
from engram_exp.layer.tokenizer import TokenizerSource

REPLACEMENT_CHARACTER = "\ufffd"  # a token that is not whole UTF-8 decodes to it
LONE_SPACE = "\ue000"  # private use: stands in for a token that is one space, so that stripping leaves it


@dataclass(frozen=True)
class TokenCompression:
    """Maps token ids to compressed ids.

    Args:
        lookup_table: int32 [vocab]: token id -> compressed id, numbered in order of first appearance.
    """

    lookup_table: np.ndarray

    @property
    def vocab_size(self) -> int:
        """Token ids that exist."""
        return len(self.lookup_table)

    @cached_property
    def compressed_vocab_size(self) -> int:
        """Distinct compressed ids."""
        return int(self.lookup_table.max()) + 1


def load_compression(source: TokenizerSource, cache_dir: Path) -> TokenCompression:
    """The compression of a tokenizer, from the cache where its content was seen before.

    Raises:
        ConfigError: the tokenizer cannot be read, or has no tokens.
    """
    key = f"compression-{tokenizers.__version__}-{source.fingerprint[:32]}"
    table = cached_array(cache_dir, key, lambda: build_lookup_table(source.load()))
    if not len(table):
        raise ConfigError("model.tokenizer", source.name, "has an empty vocabulary")
    return TokenCompression(table)


def build_lookup_table(tokenizer: Tokenizer) -> np.ndarray:
    """Compressed id of every token id, int32 [vocab]."""
    normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
            normalizers.Replace(Regex("^ $"), LONE_SPACE),
            normalizers.Strip(),
            normalizers.Replace(LONE_SPACE, " "),
        ]
    )
    vocab_size = (
        max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    )  # a vocabulary may have holes
    texts = tokenizer.decode_batch([[token_id] for token_id in range(vocab_size)], skip_special_tokens=False)
    compressed_ids: dict[str | None, int] = {}
    table = np.empty(vocab_size, dtype=np.int32)
    for token_id, text in enumerate(texts):
        if REPLACEMENT_CHARACTER in text:
            key = tokenizer.id_to_token(token_id)
        else:
            key = normalizer.normalize_str(text) or text
        table[token_id] = compressed_ids.setdefault(key, len(compressed_ids))
    return table
