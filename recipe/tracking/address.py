"""Addresses of pages in MLflow's UI. This module does not import MLflow, because that takes seconds."""


def run_address(server: str, experiment_id: str, run_id: str) -> str:
    """The URL of a run, in MLflow's view for model training rather than its view for agents."""
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
