"""Explains in one line, without showing credentials, why MLflow could not complete a request."""

from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from recipe.core.errors import TrackingError
from recipe.core.format import first_line, without_credentials

# MLflow raises these errors if the store is unreachable, its URI is misspelled, or its database driver is missing.
AWAY = (MlflowException, ImportError, OSError)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Convert MLflow's errors to a TrackingError with a one-line message."""
    try:
        yield
    except AWAY as error:
        raise TrackingError(
            f"MLflow at {without_credentials(uri)} could not register the adapter: {first_line(error)}. The adapter is "
            "safe in the recipe folder. Run `dvc repro` again when the server is reachable."
        ) from None
