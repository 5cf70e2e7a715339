"""Batches of the user's own ids."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from engram_exp.errors import ConfigError
from engram_exp.layer.tokens import NO_TOKEN, Batch


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
