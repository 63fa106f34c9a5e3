"""The registered model as MLflow loads it: base model, adapter and tokenizer, which together answer rows.

    mlflow.pyfunc.load_model("models:/recipe-demo@champion").predict([{"instruction": "What is 12 + 30?"}])

Each version runs the code that it was registered with, in a separate process (model_process.py). So versions with
different code can be loaded in one program, even if that program has imported a different `recipe`. MLflow copies this
file into the version and runs it. The base model is not part of the version: it is loaded from the folder that
RECIPE_BASE_MODEL names, from the path in the manifest or from the Hub's cache, and is rejected if its sha256 differs.
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
    """Answers rows that contain `instruction` (and optionally `input`), `text`, or `messages`."""

    # Otherwise MLflow 3.17 warns at every load that type hints could define the schema; the logged signature does.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Start the process that loads this version's tokenizer, base model and adapter."""
        program = runpy.run_path(f"{context.artifacts['code']}/tracking/model_process.py")
        try:
            self.worker = program["Worker"](json.dumps(dict(context.artifacts)))
        except ValueError as error:
            raise MlflowException(str(error)) from None

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Answer each row; `params` may set max_new_tokens. (No type hints: MLflow would read them as a schema.)"""
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
        # pandas fills missing inputs with NaN; drop them.
        rows = [{name: value for name, value in row.items() if isinstance(value, str | list)} for row in rows]
        try:
            return self.worker.answer(rows, int((params or {}).get("max_new_tokens", MAX_NEW_TOKENS)))
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None


mlflow.models.set_model(AdapterModel())
