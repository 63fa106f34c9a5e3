"""The `analyze` section of params.yaml."""

from pydantic import Field

from recipe.core.config import Section


class AnalyzeParams(Section):
    """Settings of the data report."""

    num_rows: int = Field(ge=1, description="number of dataset rows to show in the report")
    num_bins: int = Field(ge=1, description="number of bars in each histogram")
