"""MLflow: runs, the registry and the registered model. The only folder that imports mlflow."""
