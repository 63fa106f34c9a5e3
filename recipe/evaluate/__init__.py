"""Compare the base model and the adapter on the validation rows."""
