"""Stage register: the adapter as a version in the MLflow registry."""
