"""Lists the errors that say that MLflow could not complete a request."""

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

# MLflow raises these errors if the store is unreachable or locked, its URI is misspelled, or its driver is missing.
AWAY = (MlflowException, SQLAlchemyError, ImportError, OSError)
