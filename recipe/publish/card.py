"""Adds to a model card the header that the Hub reads: license, base model and data.

hub_card(card, manifest, "tatsu-lab/alpaca", "adapter")
"""

from typing import Any

from ruamel.yaml.comments import CommentedMap

from recipe.core.config import dump_yaml

# Forms of a published model, and what the Hub calls them.
RELATIONS = {"adapter": "adapter", "merged": "finetune"}


def hub_card(card: str, manifest: dict[str, Any], data: str | None, form: str) -> str:
    """Return the card with a header in YAML (https://huggingface.co/docs/hub/model-cards#model-card-metadata).

    `manifest` contains the data in manifest.json, and `data` is the dataset's id on the Hub, if it comes from there.
    """
    header = CommentedMap({"library_name": "peft" if form == "adapter" else "transformers"})
    if manifest["license"]:
        header["license"] = manifest["license"]
    if manifest["revision"]:  # a base model from the Hub
        header.update(base_model=manifest["id"], base_model_relation=RELATIONS[form])
    if data:
        header["datasets"] = [data]
    header.update(pipeline_tag="text-generation", tags=["lora", "reproducible"])
    return f"---\n{dump_yaml(header)}---\n\n{card}"
