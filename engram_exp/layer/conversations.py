"""Conversations as a server meets them: a prompt that grows turn by turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engram_exp.errors import ConfigError
from engram_exp.layer.corpus import JSONL_FIELD, records

MESSAGES, REPLY = "messages", "assistant"


def read_conversations(path: Path, max_bytes: int, *, prefix_caching: bool) -> tuple[list[str], list[int]]:
    """The messages of conversations, and the order in which they are asked for.

    A turn is a reply of the assistant and what was said since the one before it.

    Args:
        path: a JSONL file; each line is an object with `messages`, a list of objects with texts `role` and `content`,
            or with `text`, which is one turn.
        max_bytes: no further turn is read once as much (as UTF-8) is asked for.
        prefix_caching: whether a turn asks for its own messages alone, or for all of the conversation again.

    Returns:
        texts: of the messages, their roles on a line in front.
        asked: their numbers, as they are asked for.

    Raises:
        ConfigError: there is no such file, it holds no conversation, or a line is none.
    """
    if not path.is_file():
        raise ConfigError("tokens.path", path, "no such file")
    texts: list[str] = []
    sizes: list[int] = []
    asked: list[int] = []
    for number, record in records(path):
        first = len(texts)
        for turn in _turns(record, path, number):
            begun = len(texts) if prefix_caching else first
            encoded = [text.encode(errors="replace") for text in turn]
            texts += [text.decode() for text in encoded]
            sizes += map(len, encoded)
            asked += range(begun, len(texts))
            max_bytes -= sum(sizes[begun:])
            if max_bytes <= 0:
                return texts, asked
    if not asked:
        raise ConfigError("tokens.path", path, "holds no conversation")
    return texts, asked


def _turns(record: Any, path: Path, number: int) -> Iterator[list[str]]:
    """The texts of each turn of a line."""
    if isinstance(record, dict) and isinstance(record.get(JSONL_FIELD), str):
        yield [record[JSONL_FIELD]]
        return
    messages = record.get(MESSAGES) if isinstance(record, dict) else None
    if not isinstance(messages, list):
        remedy = f"line {number} has neither a list under {MESSAGES!r} nor text under {JSONL_FIELD!r}"
        raise ConfigError("tokens.path", path, remedy)
    turn: list[str] = []
    for place, message in enumerate(messages, start=1):
        role, content = (message.get(name) if isinstance(message, dict) else None for name in ("role", "content"))
        if not (isinstance(role, str) and isinstance(content, str)):
            remedy = f"line {number}: message {place} must be an object with texts 'role' and 'content'"
            raise ConfigError("tokens.path", path, remedy)
        turn.append(f"{role}\n{content}\n")
        if role == REPLY:
            yield turn
            turn = []
    if turn:
        yield turn
