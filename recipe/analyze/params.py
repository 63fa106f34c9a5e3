"""The section `analyze` of params.yaml."""

from pydantic import Field

from recipe.core.config import Section


class AnalyzeParams(Section):
    """What the report shows."""

    num_rows: int = Field(ge=1, description="rows in the table")
    num_bins: int = Field(ge=1, description="bars of a histogram")
