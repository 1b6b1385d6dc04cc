"""What a user can do something about."""


class BadInputError(Exception):
    """An option or a file does not do; the message names it, what was found, and the remedy."""


class InterruptedTrainingError(Exception):
    """A signal asked to stop, and what was reached is in the checkpoint.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum
