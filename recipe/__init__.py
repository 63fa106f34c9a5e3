"""A reproducible LoRA fine-tuning recipe that turns a dataset and a base model into a registered adapter."""

__version__ = "0.1.0"
# Model versions that were registered before the package was split into folders import `recipe.answering`,
# `recipe.modeling` and `recipe.tokenization`. The folder `flat_versions` contains these modules.
__path__ = [*__path__, f"{__path__[0]}/tracking/flat_versions"]
