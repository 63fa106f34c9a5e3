"""Defines the model that MLflow loads for a registered version. The model generates an answer for each row.

    mlflow.pyfunc.load_model("models:/recipe-demo@champion").predict([{"instruction": "What is 12 + 30?"}])

Each version runs in a separate process (model_process.py), and uses the code that was registered with it. A single
program can therefore load versions with different code, even if the program has imported a different `recipe` package.
MLflow copies this file into each version, and runs the copy when it loads the version.

A version contains the adapter and the tokenizer, but not the base model. The base model is loaded from the folder in
RECIPE_BASE_MODEL, from the path in the manifest, or from the local Hub cache. A base model is rejected if the sha256 of
a file differs from the sha256 in the manifest.
"""

import json
import runpy
from typing import Any

import mlflow
import pandas  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

MAX_NEW_TOKENS = 256


class AdapterModel(PythonModel):
    """A model that generates an answer for each row.

    The template determines the keys of a row, and the signature lists them. For example, a row contains `instruction`
    and optionally `input`, or `messages` and optionally `tools`.
    """

    # Without this setting, MLflow 3.17 warns at every load that type hints could define the schema. The warning does
    # not apply, because the logged signature already defines the schema.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Start the process that loads this version's tokenizer, base model and adapter."""
        program = runpy.run_path(f"{context.artifacts['code']}/tracking/model_process.py")
        try:
            self.worker = program["Worker"](json.dumps(dict(context.artifacts)))
        except ValueError as error:
            raise MlflowException(str(error)) from None

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return an answer for each row. `params` may contain max_new_tokens."""
        # This method has no type hints, because MLflow would interpret them as a schema.
        try:
            rows = _rows(model_input)
            return self.worker.answer(rows, int((params or {}).get("max_new_tokens", MAX_NEW_TOKENS)))
        except ValueError as error:
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from None


def _rows(model_input: Any) -> list[dict[str, Any]]:
    """Return the input as rows without missing values (NaN in pandas).

    Raises ValueError if there are no rows, or if MLflow removed all keys because the signature does not list them.
    """
    rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
    if not rows:
        raise ValueError("there are no input rows, or they have none of the keys that the model's signature names.")
    rows = [{name: _plain(value) for name, value in row.items()} for row in rows]
    return [{name: value for name, value in row.items() if not _is_missing(value)} for row in rows]


def _is_missing(value: Any) -> bool:
    """Return whether a value is None or one of pandas' missing values (NaN, NaT and NA)."""
    return value is None or bool(pandas.api.types.is_scalar(value) and pandas.isna(value))


def _plain(value: Any) -> Any:
    """Convert the NumPy arrays and scalars that MLflow may put into a row to Python lists and scalars."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


mlflow.models.set_model(AdapterModel())
