"""Defines the model that MLflow loads for a registered version. The model answers rows.

    mlflow.pyfunc.load_model("models:/recipe-demo@champion").predict([{"instruction": "What is 12 + 30?"}])

Each version runs the code that it was registered with, in a separate process (model_process.py). A single program can
therefore load versions with different code, even if the program has imported a different `recipe`. MLflow copies this
file into each version and runs the copy when it loads the version.

A version contains the adapter and the tokenizer, but not the base model. The base model is loaded from the folder that
RECIPE_BASE_MODEL names, from the path in the manifest, or from the files of the Hub on this machine. A base model is
rejected if the sha256 of a file differs from the manifest.
"""

import json
import runpy
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

MAX_NEW_TOKENS = 256


class AdapterModel(PythonModel):
    """A model that answers rows. A row contains `instruction` and optionally `input`, or `text`, or `messages`."""

    # Otherwise, MLflow 3.17 warns at every load that type hints could define the schema. The logged signature already
    # defines the schema.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Start the process that loads this version's tokenizer, base model and adapter."""
        program = runpy.run_path(f"{context.artifacts['code']}/tracking/model_process.py")
        try:
            self.worker = program["Worker"](json.dumps(dict(context.artifacts)))
        except ValueError as error:
            raise MlflowException(str(error)) from None

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return an answer to each row. `params` may contain max_new_tokens."""
        # The signature has no type hints, because MLflow would read them as a schema.
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
        # pandas fills missing values with NaN. A row must contain only strings and lists.
        rows = [{name: value for name, value in row.items() if isinstance(value, str | list)} for row in rows]
        try:
            return self.worker.answer(rows, int((params or {}).get("max_new_tokens", MAX_NEW_TOKENS)))
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None


mlflow.models.set_model(AdapterModel())
