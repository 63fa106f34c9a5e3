"""The mistakes that a user can cause, each with the exit code that the command line ends with.

A message says what is wrong, where (file, line, key), what was found and what to do about it.
"""


class RecipeError(ValueError):
    """A mistake that a user can cause and mend. `exit_code` is what the command ends with."""

    exit_code = 1


class ParamsError(RecipeError):
    """params.yaml, dvc.yaml or the command line is wrong."""

    exit_code = 2


class DataError(RecipeError):
    """The rows, or a file that holds them, are not what the recipe says."""

    exit_code = 3


class MachineError(RecipeError):
    """This machine lacks something: a file, a package, memory, disk or a GPU."""

    exit_code = 4


class TrainingError(RecipeError):
    """Training went wrong: the loss is not a number, or memory ran out."""

    exit_code = 5


class TrackingError(RecipeError):
    """The tracking server or the model registry could not do what was asked."""

    exit_code = 6


class Stopped(RecipeError):
    """A signal asked the command to stop, and it did at a place where the next run goes on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number  # as a shell reports a signal
