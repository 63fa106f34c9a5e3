"""Integrates MLflow: runs, the model registry and the registered model. No other package imports mlflow."""
