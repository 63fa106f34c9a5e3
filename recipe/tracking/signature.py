"""Describes a registered model to MLflow: the rows that it answers, and the packages needed to load it."""

import importlib.metadata
import sys

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Map

from recipe.text.templates import TEMPLATES
from recipe.tracking.pyfunc_model import MAX_NEW_TOKENS

# Row keys whose values are not strings. MLflow checks that messages are a list of objects, and accepts any other keys
# in a message, because chat templates define their own. It does not check values of AnyType, and unlike lists, they may
# be missing from some rows of a batch.
TYPES = {"messages": Array(Map(AnyType())), "tools": AnyType(), "history": AnyType()}

# The packages that pyfunc_model.py and model_process.py import. The libraries import some of them only for some models:
# accelerate to place a model on a GPU, bitsandbytes for a quantized base model, jinja2 for chat templates, and the
# others for tokenizers.
PACKAGES = (
    "accelerate", "bitsandbytes", "jinja2", "mlflow", "numpy", "pandas", "peft", "protobuf", "pydantic", "ruamel.yaml",
    "safetensors", "sentencepiece", "tiktoken", "tokenizers", "torch", "transformers",
)  # fmt: skip


def signature(template: str) -> ModelSignature:
    """Return the schema of a model's input rows, which depends on its template, and the schema of its answers."""
    inputs = TEMPLATES[template].INPUTS
    return ModelSignature(
        inputs=Schema([ColSpec(TYPES.get(name, "string"), name, required=inputs[name]) for name in inputs]),
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema([ParamSpec("max_new_tokens", "long", MAX_NEW_TOKENS)]),
    )


def requirements() -> list[str]:
    """Return the installed versions of PACKAGES as requirements that the public package index can satisfy.

    A local version such as 2.13.0+cpu exists only on the index of its build, so only the public part is kept.
    """
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in PACKAGES]


def python_environment() -> str:
    """Return the content of python_env.yaml, from which MLflow creates an environment for a version.

    It gives the Python version without the patch level. If the exact version were given, as MLflow does by default,
    `mlflow models predict --env-manager uv` would download an interpreter even if another patch level is installed.
    """
    return (
        f"python: '{sys.version_info.major}.{sys.version_info.minor}'\n"
        "build_dependencies:\n- pip\n- setuptools\n- wheel\ndependencies:\n- -r requirements.txt\n"
    )
