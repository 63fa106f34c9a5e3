"""The registered model, as MLflow loads it: base model, adapter and tokenizer, answering rows.

    mlflow.pyfunc.load_model("models:/recipe-demo@champion").predict([{"instruction": "What is 12 + 30?"}])

A version answers with the code that it was registered with, in a process of its own (model_process.py): versions with
different code can be loaded beside each other, in a program that has imported another `recipe`. MLflow copies this file
into the version and runs it. The base model is not in the version: it is looked for where the manifest says, or in the
folder RECIPE_BASE_MODEL, and refused if its sha256 differs.
"""

import json
import runpy
import warnings
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

MAX_NEW_TOKENS = 256
# MLflow would have type hints decide the schema, and warns about a class without them; the signature is given instead.
warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method.*", category=UserWarning)


class AdapterModel(PythonModel):
    """Answers rows with `instruction` and, optionally, `input`; or `text`; or `messages`."""

    def load_context(self, context: Any) -> None:
        """Start the process that loads tokenizer, base model and adapter from the version's folders."""
        program = runpy.run_path(f"{context.artifacts['code']}/tracking/model_process.py")
        try:
            self.worker = program["Worker"](json.dumps(dict(context.artifacts)))
        except ValueError as error:
            raise MlflowException(str(error)) from None

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """One answer a row. `params`: max_new_tokens. (No type hints: MLflow would take them for a schema.)"""
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
        # pandas fills a missing input with NaN.
        rows = [{name: value for name, value in row.items() if isinstance(value, str | list)} for row in rows]
        try:
            return self.worker.answer(rows, int((params or {}).get("max_new_tokens", MAX_NEW_TOKENS)))
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None


mlflow.models.set_model(AdapterModel())
