"""The registered model, as MLflow loads it: base, adapter and tokenizer, answering instructions.

MLflow runs this file when `mlflow.pyfunc.load_model("models:/NAME@champion")` is called. The base model is not in the
artifact: it is looked for where the manifest says, or in the folder that RECIPE_BASE_MODEL names, and refused where
its sha256 is another.

    mlflow.pyfunc.load_model("models:/recipe-demo@champion").predict([{"instruction": "What is 12 + 30?"}])
"""

import json
from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc import PythonModel

from recipe.model.generate import answer_rows
from recipe.model.load import load_adapter, load_base
from recipe.tokens.tokenizer import load_tokenizer

MAX_NEW_TOKENS = 256


class AdapterModel(PythonModel):
    """Answers rows with `instruction` and, where there is one, `input`."""

    def load_context(self, context: Any) -> None:
        """Load tokenizer, base and adapter from the artifact's folders."""
        manifest = json.loads(Path(context.artifacts["base_manifest"]).read_text(encoding="utf-8"))
        self.meta = json.loads(Path(context.artifacts["prepared_meta"]).read_text(encoding="utf-8"))
        self.tokenizer = load_tokenizer(Path(context.artifacts["tokenizer"]))
        trained = json.loads(Path(context.artifacts["training"]).read_text(encoding="utf-8"))
        base = load_base(manifest, Path.cwd(), len(self.tokenizer), trained["quantization"])
        self.model = load_adapter(base, Path(context.artifacts["adapter"]), manifest)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """One answer a row. `params`: max_new_tokens. (No type hints: MLflow would take them for a schema.)"""
        rows = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
        # pandas fills a missing input with NaN.
        rows = [{name: value for name, value in row.items() if isinstance(value, str | list)} for row in rows]
        max_new_tokens = int((params or {}).get("max_new_tokens", MAX_NEW_TOKENS))
        return answer_rows(self.model, self.tokenizer, self.meta, rows, max_new_tokens)


mlflow.models.set_model(AdapterModel())
