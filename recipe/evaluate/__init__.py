"""Compare base model and adapter on the validation rows."""
