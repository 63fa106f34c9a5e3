r"""Register the adapter in MLflow, and move the alias `champion` to it if it is better.

To use another server: MLFLOW_TRACKING_URI=http://... recipe register
"""
