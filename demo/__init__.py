"""The demo's rows and base model, and the scripts that create them."""
