"""Builds the URLs of pages in MLflow's UI. This module does not import MLflow, because the import takes seconds."""


def run_address(server: str, experiment_id: str, run_id: str) -> str:
    """Return the URL of a run in MLflow's model training view. MLflow has a separate view for agents."""
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
