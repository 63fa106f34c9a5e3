"""Stage fetch: the rows and the base model, checked, in the recipe folder."""
