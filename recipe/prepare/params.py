"""The `sequence` section of params.yaml."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from recipe.core.config import Section
from recipe.text.templates import TEMPLATES, TemplateName


class SequenceParams(Section):
    """Settings for converting rows to token sequences."""

    RENAMED: ClassVar = {"overlong": "on_overlong"}
    template: TemplateName
    chat_template: str | None = Field(description="a template name, Jinja text, or null for the tokenizer's template")
    columns: dict[str, str | None]
    max_length: int = Field(ge=8, description="maximum number of tokens in a packed sequence")
    on_overlong: Literal["truncate", "drop", "error"]
    loss_on: Literal["completion", "all"]
    packing: bool
    validation_fraction: float = Field(gt=0, lt=1)
    on_bad_row: Literal["error", "drop"]

    @model_validator(mode="after")
    def _columns_fit_the_template(self) -> "SequenceParams":
        template = TEMPLATES[self.template]
        if self.chat_template is not None and not template.USES_CHAT_TEMPLATE:
            chats = " and ".join(name for name, other in TEMPLATES.items() if other.USES_CHAT_TEMPLATE)
            raise ValueError(f"chat_template can be set only for the templates {chats}, not for {self.template}")
        required, optional = template.REQUIRED, template.OPTIONAL
        missing = [name for name in required if self.columns.get(name) is None]
        known = (*required, *optional, "category")
        unknown = [name for name, column in self.columns.items() if column is not None and name not in known]
        if missing:
            raise ValueError(f"columns: the template `{self.template}` requires {', '.join(missing)}")
        if unknown:
            raise ValueError(f"columns: the template `{self.template}` does not use {', '.join(unknown)}")
        return self
