"""A reproducible LoRA fine-tuning recipe: dataset and base model in, registered adapter out."""

__version__ = "0.1.0"
# Model versions registered before the package had subpackages import `recipe.answering` and two other modules. The
# folder added here contains those modules.
__path__ = [*__path__, f"{__path__[0]}/tracking/flat_versions"]
