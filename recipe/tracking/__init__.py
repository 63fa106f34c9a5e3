"""MLflow: runs, the model registry and the registered model. The only package that imports mlflow."""
