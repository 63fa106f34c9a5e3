"""Token ids: the tokenizer, and packing examples into sequences."""
