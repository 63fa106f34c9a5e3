"""The embedded default's rows and base model, and the scripts that made them."""
