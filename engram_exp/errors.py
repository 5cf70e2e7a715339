"""The ways in which a run can fail, each with the status of its rows and a message that says what would work."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from engram_exp.vocabulary import CRASH, DEVICE, MISMATCH, OOM_DEVICE, OOM_HOST, REFUSED, SKIPPED, TIMEOUT

ALLOCATION_FAILED = "can't allocate memory"  # what PyTorch's CPU allocator says
OUT_OF_DEVICE_MEMORY = "OutOfMemoryError"  # PyTorch's, by its name: nothing here imports PyTorch


class ConfigError(ValueError):
    """A configuration that cannot run.

    Args:
        key: the configuration key as the user types it.
        value: what it was set to; None where that is no single value: a component that refuses to run does not know
            under which option it was chosen.
        remedy: what would work.
    """

    status = REFUSED

    def __init__(self, key: str, value: object, remedy: str) -> None:
        self.key, self.value, self.remedy = key, value, remedy
        super().__init__(f"{key}: {remedy}" if value is None else f"{key}={value}: {remedy}")

    def with_choices(self, choices: Mapping[str, str | None]) -> ConfigError:
        """The same, naming the option that was chosen where the error is about a group."""
        if self.value is None and choices.get(self.key):
            return ConfigError(self.key, choices[self.key], self.remedy)
        return self


class DoesNotFitError(MemoryError):
    """Memory that a run needs and that is not free. Sizes in bytes; `where` is `host` or `device`."""

    def __init__(self, where: str, needed_bytes: int, free_bytes: int, remedy: str) -> None:
        self.status = OOM_DEVICE if where == DEVICE else OOM_HOST
        super().__init__(
            f"needs {needed_bytes / 1e9:.2f} GB of {where} memory, {free_bytes / 1e9:.2f} GB are free: {remedy}"
        )


class MismatchError(AssertionError):
    """A step whose output differs from the reference."""

    status = MISMATCH


class SkippedError(RuntimeError):
    """Something that this machine cannot do; not the fault of the configuration."""

    status = SKIPPED


class RegistrationError(RuntimeError):
    """The driver refuses to register host memory."""

    status = REFUSED


class OtherRankError(RuntimeError):
    """What went wrong on some ranks of a run, raised on all of them.

    Args:
        told: by rank, the status and the text of its error; None of one that had none.
    """

    def __init__(self, told: Sequence[tuple[str, str] | None]) -> None:
        self.status, text = next(error for error in told if error)
        alike = [rank for rank, error in enumerate(told) if error == (self.status, text)]
        super().__init__(text if len(alike) == len(told) else f"{ranks_in_words(alike)}: {text}")


class LostRank(BaseException):  # no error of a case, which the others could outlive
    """A rank that the others cannot go on with, and why.

    Args:
        text: naming it.
        status: of the run's rows.
    """

    def __init__(self, text: str, status: str = TIMEOUT) -> None:
        self.status = status
        super().__init__(text)


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Ranks as a message names them."""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def status_of(error: BaseException) -> str:
    """The status of the rows of a run, or of a case, that ended with an error."""
    known = getattr(error, "status", None)
    if isinstance(known, str):
        return known
    if type(error).__name__ == OUT_OF_DEVICE_MEMORY:
        return OOM_DEVICE
    no_memory = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return OOM_HOST if no_memory or ALLOCATION_FAILED in str(error) else CRASH


def text_of(error: BaseException, choices: Mapping[str, str | None]) -> str:
    """What an error says to the user; one that the project does not know also says of which class it is."""
    if isinstance(error, ConfigError):
        return str(error.with_choices(choices))
    return str(error) if isinstance(getattr(error, "status", None), str) else repr(error)
