"""Addresses of pages in MLflow's UI. This module does not import MLflow, which takes seconds."""


def run_address(server: str, experiment_id: str, run_id: str) -> str:
    """The URL of a run, in the view for model training rather than for agents."""
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
