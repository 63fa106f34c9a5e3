r"""Register the adapter in MLflow; the alias `champion` moves to it if it is better.

On another server: MLFLOW_TRACKING_URI=http://... recipe register
"""
