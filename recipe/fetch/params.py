"""The `data` and `model` sections of params.yaml."""

from typing import ClassVar

from pydantic import Field

from recipe.core.config import Section


class DataParams(Section):
    """The source of the rows. DVC tracks all keys in this section and the source itself."""

    RENAMED: ClassVar = {"train": "train_split", "validation": "validation_split"}
    source: str = Field(min_length=1, description="a file or folder of rows, or `hub`")
    id: str | None = Field(description="the dataset's name on the Hub")
    revision: str | None = Field(description="the dataset's 40-digit commit on the Hub")
    subset: str | None = Field(description="the subset of a dataset on the Hub; null for its default")
    sha256: str | dict[str, str] | None = Field(
        description="the sha256 of the source file, or of each file in a folder"
    )
    train_split: str = Field(min_length=1, description="the split to train on")
    validation_split: str | None = Field(
        description="the split to validate on; if null, part of the training rows is held out"
    )

    general: str | None = Field(
        description="a file of rows that the training does not target, on which the adapter must not get worse"
    )
    general_sha256: str | None = Field(description="the sha256 of that file, which `recipe pin` fills in")

    @property
    def splits(self) -> dict[str, str]:
        """A mapping from `train` and `validation` to the names of these splits in the source."""
        return {"train": self.train_split} | (
            {} if self.validation_split is None else {"validation": self.validation_split}
        )


class ModelParams(Section):
    """The source of the base model."""

    source: str = Field(min_length=1, description="a folder in transformers' layout, or `hub`")
    id: str = Field(min_length=1, description="the model's name")
    revision: str | None = Field(description="the model's 40-digit commit on the Hub")
    trust_remote_code: bool = Field(description="run the model's own Python code")
