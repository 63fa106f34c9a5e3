"""A reproducible LoRA fine-tuning recipe that turns a dataset and a base model into a registered adapter."""

__version__ = "0.1.0"
# Model versions from before the package was split into folders import `recipe.answering`, `recipe.modeling` and
# `recipe.tokenization`. The folder added here contains these modules.
__path__ = [*__path__, f"{__path__[0]}/tracking/flat_versions"]
