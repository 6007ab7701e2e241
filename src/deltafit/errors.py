"""Errors meant for the person at the keyboard: one sentence each, never a traceback."""


class DeltafitError(Exception):
    """Something the person can mend: what is wrong, where, and what to do (exit code 1)."""


class DiskFullError(DeltafitError):
    """The disk took no more; what was written before it is whole (exit code 1)."""


class UsageError(DeltafitError):
    """The call itself is wrong: an unknown option, value or combination (exit code 2)."""


class TrainingError(DeltafitError):
    """Training went wrong by itself: it diverged, or a tensor gets no gradient (exit code 1).

    Args:
        what: it did, and what to do: "diverged at step 3: the loss became nan. Lower --lr."
    """

    def __init__(self, what: str) -> None:
        super().__init__(f"Training {what}")
        self.what = what
