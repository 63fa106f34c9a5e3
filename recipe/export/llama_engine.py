"""Runs a GGUF file with llama.cpp's server, for the comparison with the trained adapter (parity.py)."""

from typing import Any

import numpy as np

from recipe.export.llama import LlamaServer
from recipe.export.parity import SCORED_TOKENS, Logits

# The server writes the probabilities of one token as JSON, about 80 bytes each. With a large vocabulary, fewer tokens
# of each row are compared.
PROBABILITIES = 25_000_000


class LlamaEngine:
    """Runs a model with llama.cpp. `num_tokens` is the vocabulary's size; `end_ids` are tokens that end answers."""

    def __init__(self, server: LlamaServer, num_tokens: int, num_rows: int, end_ids: list[int]) -> None:
        self._server, self._num_tokens, self._end_ids = server, num_tokens, end_ids
        # The server leaves out the probabilities if the sampled token is a part of a character, so this one is sampled.
        self._letter = server.post("/tokenize", {"content": "a", "add_special": False})["tokens"][-1]
        self._scored = max(2, min(SCORED_TOKENS, PROBABILITIES // (num_tokens * max(1, num_rows))))

    def prompt_ids(self, prompts: list[str]) -> list[list[int]]:
        """Return the token ids that the server makes from a prompt in a request."""
        return [
            self._server.post("/tokenize", {"content": prompt, "add_special": True, "parse_special": True})["tokens"]
            for prompt in prompts
        ]

    def logits(self, ids: list[int], start: int) -> Logits:
        """Return logarithms of the probabilities of the tokens from index `start` on: (tokens, vocabulary)."""
        ends = range(start, min(len(ids), start + self._scored))
        array = np.full((len(ends), self._num_tokens), -np.inf, np.float32)
        for row, end in zip(array, ends, strict=True):
            sampled = [[self._letter, 1e9]]  # does not change the probabilities, which are those before sampling
            answer = self._complete(ids[:end], 1, n_probs=self._num_tokens, logit_bias=sampled)
            for item in answer["completion_probabilities"][0]["top_logprobs"]:
                row[item["id"]] = item["logprob"]
        return array

    def answer(self, ids: list[int], max_new_tokens: int) -> list[int]:
        """Return the answer to a prompt with greedy decoding, without its end token."""
        tokens: list[int] = self._complete(ids, max_new_tokens, return_tokens=True)["tokens"]
        end = next((place for place, token in enumerate(tokens) if token in self._end_ids), len(tokens))
        return tokens[:end]

    def chat_prompt(self, messages: list[dict[str, str]]) -> str:
        """Return the prompt that the server renders from messages, with the chat template in the file."""
        prompt: str = self._server.post("/apply-template", {"messages": messages})["prompt"]
        return prompt

    def _complete(self, ids: list[int], num_tokens: int, **options: Any) -> Any:
        greedy = {"temperature": 0.0, "cache_prompt": True, "n_predict": num_tokens}
        return self._server.post("/completion", {"prompt": ids, **greedy, **options})
