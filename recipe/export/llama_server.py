"""Runs llama.cpp's server until the standard input is closed or a signal ends the process.

    python llama_server.py '{"model": "model.gguf", "exact": true}'      # prints {"address": "http://..."}

This program runs in a process of its own, with llama.cpp's packages and without the recipe's. The other options are
`host`, `port` (0: any free one), `context` (0: that of the model), `parallel` (requests at once), `api_key`, `alias`
(the model's name in answers), and `threads`.
"""

import json
import signal
import sys
import threading
from typing import Any


def main(options: dict[str, Any]) -> None:
    """Start the server and wait for the end."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = options["model"]
    params.warmup = False
    params.cpuparams.poll = 0  # threads that spin while they wait are 1,000 times slower if other work shares the cores
    params.hostnames = [options.get("host", "127.0.0.1")]
    params.port = options.get("port", 0)
    params.n_ctx = options.get("context", 0)
    params.n_parallel = options.get("parallel", 1)
    if options.get("threads"):
        params.cpuparams.n_threads = options["threads"]
    if options.get("api_key"):
        params.api_keys = [options["api_key"]]
    if options.get("alias"):
        params.model_alias = {options["alias"]}
    if options["exact"]:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.use_jinja = True
    params.ui = False
    params.cors_origins = ""
    server = xllamacpp.Server(params)
    sys.stdout.write(json.dumps({"address": server.listening_address}) + "\n")
    sys.stdout.flush()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())

    def wait_for_the_end_of_input() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end_of_input, daemon=True).start()
    ended.wait()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
