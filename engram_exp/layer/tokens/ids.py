"""Batches of the user's own ids."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from engram_exp.errors import ConfigError
from engram_exp.layer.tokens import NO_TOKEN, Batch

ARRAYS = (".npy", ".npz")


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
        arrays = load_arrays(path)
        self.ids = checked_ids(path, "ids", arrays["ids"], vocab_size).astype(np.int64)
        if history and "history" not in arrays:
            raise ConfigError("tokens.history", history, f"{path} holds no array `history`")
        if history is not False and "history" in arrays:
            found = checked_ids(path, "history", arrays["history"], vocab_size, least=NO_TOKEN)
            self.history = found.astype(np.int64)
        else:
            self.history = np.full((len(self.ids), history_len), NO_TOKEN, dtype=np.int64)
        if self.history.shape != (len(self.ids), history_len):
            raise ConfigError(
                "tokens.path", path, f"`history` is {self.history.shape}, not {(len(self.ids), history_len)}"
            )

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


def checked_ids(
    path: str, name: str, array: np.ndarray, vocab_size: int, *, least: int = 0, ranks: tuple[int, ...] = (2,)
) -> np.ndarray:
    """An array of a file, if it holds ids.

    Raises:
        ConfigError: the wrong rank or dtype, or ids from outside of `least` to the vocabulary.
    """
    if array.ndim not in ranks or not np.issubdtype(array.dtype, np.integer):
        wanted = " or ".join(map(str, ranks))
        remedy = f"`{name}` is {array.dtype} {array.shape}, not whole numbers of rank {wanted}"
        raise ConfigError("tokens.path", path, remedy)
    if array.size and (array.min() < least or array.max() >= vocab_size):
        remedy = f"`{name}` holds {array.min()} to {array.max()}, outside of {least} to {vocab_size - 1}"
        raise ConfigError("tokens.path", path, remedy)
    return array


def load_arrays(path: str) -> dict[str, np.ndarray]:
    """The arrays of a `.npz`, or that of a `.npy` under the name `ids`.

    Raises:
        ConfigError: the file is missing, is neither, needs pickles, or has no `ids`.
    """
    try:
        loaded = np.load(Path(path).expanduser(), allow_pickle=False)
        arrays = {"ids": loaded} if isinstance(loaded, np.ndarray) else _read_all(loaded)
    except FileNotFoundError:
        raise ConfigError("tokens.path", path, "no such file") from None
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError("tokens.path", path, f"is not a .npy or .npz without pickles ({error})") from error
    if "ids" not in arrays:
        raise ConfigError("tokens.path", path, f"has no array `ids`, only {sorted(arrays)}")
    return arrays


def _read_all(archive: np.lib.npyio.NpzFile) -> dict[str, np.ndarray]:
    with archive:
        return {name: archive[name] for name in archive.files}
