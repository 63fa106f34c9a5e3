"""Describes a registered model to MLflow: its input rows, its answers, and the packages needed to load it."""

import importlib.metadata
import sys

from mlflow.models import ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType, Array, Map

from recipe.text.templates import TEMPLATES
from recipe.tracking.pyfunc_model import MAX_NEW_TOKENS

# The types of the row keys whose values are not strings. MLflow checks that `messages` is a list of objects. A message
# may have any keys, because chat templates define their own keys. MLflow does not check values of AnyType. Unlike
# lists, these values may be missing from some rows of a batch.
TYPES = {"messages": Array(Map(AnyType())), "tools": AnyType(), "history": AnyType()}

# The packages that a version needs, directly or through other libraries. Some packages are needed only in some cases:
# accelerate to place a model on a GPU, bitsandbytes for quantized base models, jinja2 for chat templates, and protobuf,
# sentencepiece and tiktoken for some tokenizers.
PACKAGES = (
    "accelerate", "bitsandbytes", "jinja2", "mlflow", "numpy", "pandas", "peft", "protobuf", "pydantic", "ruamel.yaml",
    "safetensors", "sentencepiece", "tiktoken", "tokenizers", "torch", "transformers",
)  # fmt: skip


def signature(template: str) -> ModelSignature:
    """Return the schema of the input rows and the answers of a model that uses this template."""
    inputs = TEMPLATES[template].INPUTS
    return ModelSignature(
        inputs=Schema([ColSpec(TYPES.get(name, "string"), name, required=inputs[name]) for name in inputs]),
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema([ParamSpec("max_new_tokens", "long", MAX_NEW_TOKENS)]),
    )


def requirements() -> list[str]:
    """Return the installed versions of PACKAGES as requirements that the public package index can satisfy.

    A local version such as 2.13.0+cpu is not on the public index, so the suffix after the version number is removed.
    """
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in PACKAGES]


def python_environment() -> str:
    """Return the content of python_env.yaml, from which MLflow creates an environment for a version.

    The file contains the Python version without the patch level. By default, MLflow writes the exact version. With the
    exact version, `mlflow models predict --env-manager uv` would download an interpreter even if a different patch
    level is installed.
    """
    return (
        f"python: '{sys.version_info.major}.{sys.version_info.minor}'\n"
        "build_dependencies:\n- pip\n- setuptools\n- wheel\ndependencies:\n- -r requirements.txt\n"
    )
