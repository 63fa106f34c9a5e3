"""Serves a trained model over OpenAI's API, with an existing engine, after proving that it is the trained model."""
