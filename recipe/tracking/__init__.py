"""Integrates MLflow: runs, the model registry and the registered model. No other package imports mlflow."""

from recipe.tracking.settings import prepare_environment

IGNORED = prepare_environment()  # before any module of this package imports MLflow, which then reads the environment
