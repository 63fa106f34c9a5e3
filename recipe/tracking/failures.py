"""Explains in one line, without showing credentials, why MLflow could not complete a request."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

from recipe.core.errors import TrackingError
from recipe.core.format import first_line

# MLflow raises these errors if the store is unreachable, its URI is misspelled, or its database driver is missing.
AWAY = (MlflowException, ImportError, OSError)


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Convert MLflow's errors to a TrackingError with a one-line message."""
    try:
        yield
    except AWAY as error:
        reason = without_credentials(error)
        raise TrackingError(
            f"MLflow at {shown(uri)} could not register the adapter: {reason}. The adapter is safe in the recipe "
            "folder. Run `dvc repro` again when the server is reachable."
        ) from None


def without_credentials(error: Exception) -> str:
    """Return the first line of an error's message, with credentials removed from URLs."""
    return re.sub(r"//[^/@\s]+@", "//", first_line(error))


def shown(uri: str) -> str:
    """Return the URI without credentials."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rsplit('@', 1)[-1]}"
