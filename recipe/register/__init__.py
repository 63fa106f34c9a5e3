r"""Register the adapter in MLflow, and move the `champion` alias to it if it is better than the current champion.

To use a different server: MLFLOW_TRACKING_URI=http://... recipe register
"""
