"""A reproducible LoRA fine-tuning recipe: dataset and base model in, registered adapter out."""

__version__ = "0.1.0"
# Versions that were registered before the package had folders import `recipe.answering` and two other modules. They are
# found in this folder.
__path__ = [*__path__, f"{__path__[0]}/tracking/flat_versions"]
