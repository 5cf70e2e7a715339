"""The ways in which a run can be refused, each with a message that says what would work."""


class ConfigError(ValueError):
    """A configuration that cannot run.

    Args:
        key: the configuration key as the user types it.
        value: what it was set to.
        remedy: what would work.
    """

    def __init__(self, key: str, value: object, remedy: str) -> None:
        self.key = key
        super().__init__(f"{key}={value}: {remedy}")


class DoesNotFitError(MemoryError):
    """Memory that a run needs and that is not free. Sizes in bytes; `where` is `host` or `device`."""

    def __init__(self, where: str, needed_bytes: int, free_bytes: int, remedy: str) -> None:
        self.where = where
        super().__init__(
            f"needs {needed_bytes / 1e9:.2f} GB of {where} memory, {free_bytes / 1e9:.2f} GB are free: {remedy}"
        )


class MismatchError(AssertionError):
    """A step whose output differs from the reference."""


class SkippedError(RuntimeError):
    """Something that this machine cannot do; not the fault of the configuration."""
