"""One exception tree. Every error says what is wrong, where, and how to fix it."""


class AssayError(Exception):
    """Something the user can act on; the command line prints it without a traceback.

    `what` names the fault and the place (file, line, key); `hint` is the fix in one sentence.
    """

    exit_code = 1

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  hint: {self.hint}" if self.hint else self.what


class UsageError(AssayError):
    """The request itself is wrong: a command, a path, an option. Nothing was written."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe or an override that does not fit the schema."""


class DataError(UsageError):
    """Input data that cannot be read or used."""


class ModelError(AssayError):
    """A model, tokenizer or adapter that cannot be loaded or does not fit its role."""


class TrainingError(AssayError):
    """A run that cannot go on: broken beyond use, nothing left to train on."""


class NotFiniteError(TrainingError):
    """NaN or infinity where training goes on from; weights and checkpoints are as they were before."""


class StorageError(AssayError):
    """Artifacts that cannot be written or read: full disk, locked folder, damaged manifest."""


class Interrupted(AssayError):
    """The user asked to stop; what was done is kept, in artifacts and in a checkpoint."""

    exit_code = 130
