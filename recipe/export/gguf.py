"""Exports a GGUF file for llama.cpp and the programs built on it, and compares it with the trained adapter there.

    export_gguf(trained, Path("exports/gguf-q8_0"), "q8_0", "my-model", llama, scratch, say)

llama.cpp splits text into pieces by a method that it knows by a name (`tokenizer.ggml.pre`), and its converter knows
that name for published tokenizers only. For others, the names are tried: the first one is taken with which llama.cpp
makes the token ids of the training from all validation rows.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipe.core.errors import MachineError, ParamsError
from recipe.core.io import new_folder, read_json, write_text
from recipe.export.chat_template import exported_template, rendered_by_transformers, template_problem
from recipe.export.limits import differences, exceeded, limits_for
from recipe.export.llama import LlamaServer, run_converter
from recipe.export.llama_engine import LlamaEngine
from recipe.export.merged import best_merge, merge_choices, reference_of, write_merged
from recipe.export.ollama import CONVERSATIONS, modelfile, template_texts
from recipe.export.outcome import Export, Say, origin, refuse_if, write_marker
from recipe.export.parity import ANSWER_TOKENS, Reference, measure
from recipe.export.trained import Trained
from recipe.tokens.tokenizer import encode_prompts, load_tokenizer

TYPES = {"float32": "f32", "bfloat16": "bf16", "q8_0": "q8_0"}  # what llama.cpp's converter writes
SMALL_TYPES = ("q6_k", "q5_k_m", "q4_k_m")  # what llama-quantize makes from a file in fp32
SENTENCEPIECE = "tokenizer.model"
QUANTIZE = "llama-quantize"
# Names of tokenizers that split text in different ways, as llama.cpp calls them. The most common ways come first.
SPLITS = ("gpt-2", "llama-bpe", "qwen2", "smollm", "gpt-4o", "tekken", "deepseek-llm", "starcoder", "falcon", "olmo",
          "mpt", "default")  # fmt: skip
MAX_TEXTS = 1000  # texts of validation rows that are compared to find the way to split text
SPARE_TOKENS = 8  # of the context


def export_gguf(
    trained: Trained, folder: Path, precision: str, name: str, llama: Path, scratch: Path, say: Say,
    tolerance: float | None = None,
) -> Export:  # fmt: skip
    """Write `NAME-TYPE.gguf` to `folder`, after comparing it with the adapter. Raises the same errors as write_gguf."""
    with new_folder(folder) as target:
        return write_gguf(trained, target, precision, name, llama, scratch, say, tolerance)


def export_ollama(
    trained: Trained, folder: Path, precision: str, name: str, llama: Path, scratch: Path, say: Say,
    tolerance: float | None = None,
) -> Export:  # fmt: skip
    """Write a GGUF file and a Modelfile to `folder`.

    Raises the same errors as write_gguf, and ParamsError if Ollama would send other prompts than those of the training.
    """
    tokenizer = load_tokenizer(trained.tokenizer)
    texts = template_texts(rendered_by_transformers(tokenizer, exported_template(trained.meta)))
    prompts = [*filter(None, map(texts.render, CONVERSATIONS))]
    with new_folder(folder) as target:
        export = write_gguf(trained, target, precision, name, llama, scratch, say, tolerance, prompts)
        if export.notes:
            raise ParamsError(f"--to ollama: Ollama takes prompts as text only, but {export.notes[0]}")
        file = next(target.glob("*.gguf"))
        ends = tokenizer.convert_ids_to_tokens(trained.meta["end_token_ids"])
        context = read_json(trained.base_files()[0].parent / "config.json").get("max_position_embeddings")
        write_text(target / "Modelfile", modelfile(texts, file.name, ends, context))
    return replace(export, notes=tuple(texts.notes()))


def write_gguf(
    trained: Trained, target: Path, precision: str, name: str, llama: Path, scratch: Path, say: Say,
    tolerance: float | None = None, prompts: Sequence[str] = (),
) -> Export:  # fmt: skip
    """Write `NAME-TYPE.gguf` to the folder `target`, and compare it with the adapter.

    `llama` is the folder with llama.cpp's packages, and `scratch` an existing folder for temporary files. `prompts` are
    further texts whose token ids are compared. Raises TrainingError if the model differs from the adapter by more than
    the limits, ParamsError if llama.cpp does not support the model, and MachineError if a program is missing.
    """
    quantize = find_quantize(precision)
    limits = limits_for(precision, trained.quantization, tolerance)
    reference = reference_of(trained, scratch, say)
    model = scratch / "model"
    kept = _merge(trained, model, reference, scratch, say)
    is_chat = trained.meta["chat_template"] is not None
    options = {
        "model": str(model), "name": name, "end_ids": trained.meta["end_token_ids"],
        "adds_bos": False if is_chat else None,  # a chat template writes the begin token itself
    }  # fmt: skip
    tokenizer = load_tokenizer(trained.tokenizer)
    say("comparing llama.cpp's token ids with those of the training")
    texts = [*prompts, *validation_texts(trained)]
    wanted = encode_prompts(tokenizer, texts, chat=is_chat)
    pre, equal = choose_split(texts, wanted, options, llama, scratch)
    note = None if equal == len(texts) else (
        f"llama.cpp splits text differently: {len(texts) - equal} of {len(texts)} texts have other token ids. Send "
        "prompts as token ids, which the recipe's tokenizer makes."
    )  # fmt: skip
    facts = {**origin(trained, kept), "prompts": note or "text"}
    file = target / f"{name}-{TYPES.get(precision, precision)}.gguf"
    say(f"converting the model to GGUF ({precision})")
    written = scratch / "f32.gguf" if quantize else file
    run_converter(
        llama, {**options, "out": str(written), "type": TYPES.get(precision, "f32"), "pre": pre, "facts": facts}
    )
    if quantize:
        run_quantize(quantize, written, file, precision)
        written.unlink()
    shutil.rmtree(model)
    say("comparing llama.cpp's answers with those of the adapter")
    context = max([len(row.ids) for row in reference.rows] or [0]) + ANSWER_TOKENS + SPARE_TOKENS
    with LlamaServer(llama, file, scratch / "server.log", context=context) as server:
        num_tokens = reference.logits("adapter", 0).shape[1] if reference.rows else 1
        engine = LlamaEngine(server, num_tokens, len(reference.rows), trained.meta["end_token_ids"])
        parity = measure(engine, reference)
        template = template_problem(engine.chat_prompt, tokenizer, trained.meta)
    errors = [*differences(parity, same_ids=note is None), *filter(None, [template])]
    refuse_if("GGUF file", errors, exceeded(parity, limits))
    write_marker(target, trained, kept, precision, reference, prompts=facts["prompts"], split=pre)
    return Export(kept, {kept: parity}, limits, (note,) if note else ())


def _merge(trained: Trained, model: Path, reference: Reference, scratch: Path, say: Say) -> str:
    """Merge the adapter in fp32 into the weights that give the model nearest to it. Return the name of the weights."""
    model.mkdir()
    choices = merge_choices(trained)
    if len(choices) == 1:
        say("merging the adapter into the base model")
        write_merged(trained, model, "float32", choices[0])
    else:
        choices = [*best_merge(trained, model, "float32", reference, scratch, say)[0]]
    # Some converters need this file. It is not among the files that the manifest lists; whether the tokens are those of
    # the training is compared later.
    sentencepiece = trained.base_files()[0].parent / SENTENCEPIECE
    if sentencepiece.is_file():
        shutil.copy(sentencepiece, model / SENTENCEPIECE)
    return choices[0]


def choose_split(
    texts: list[str], wanted: list[list[int]], options: dict[str, Any], llama: Path, scratch: Path
) -> tuple[str | None, int]:
    """Find the way to split text with which llama.cpp makes the token ids `wanted` from `texts`.

    Returns its name (None: the converter's choice) and the number of texts with equal ids. If none makes all of them
    equal, the one with the most is returned.
    """
    probes = {name: str(scratch / f"probe-{name}.gguf") for name in ("", *SPLITS)}
    found = run_converter(llama, {**options, "out": str(scratch / "vocabulary.gguf"), "probes": probes})
    candidates = ["", *SPLITS] if found["needs_pre"] else [""]
    if found["needs_pre"] and found["pre"] is None:
        candidates.remove("")
    best: tuple[str | None, int] = (None, -1)
    for candidate in candidates:
        with LlamaServer(llama, Path(probes[candidate]), scratch / "probe.log") as server:
            ids = LlamaEngine(server, 1, 1, []).prompt_ids(texts)
        equal = sum(a == b for a, b in zip(ids, wanted, strict=True))
        if equal > best[1]:
            best = candidate or None, equal
        if equal == len(texts):
            break
    for path in probes.values():
        Path(path).unlink()
    return best


def validation_texts(trained: Trained) -> list[str]:
    """Return the prompts of validation rows, and their prompts with the answers."""
    texts = [text for row in trained.rows for text in (row["prompt"], row["prompt"] + row["completion"]) if text]
    return list(dict.fromkeys(texts))[:MAX_TEXTS]


def find_quantize(precision: str) -> str | None:
    """Return the path of llama-quantize if the precision needs it. Raises MachineError if it is not installed."""
    if precision in TYPES:
        return None
    if precision not in SMALL_TYPES:
        raise ParamsError(f"--dtype: a GGUF file can't have the precision {precision}.")
    path = shutil.which(QUANTIZE)
    if path is None:
        raise MachineError(
            f"--dtype {precision} needs the program {QUANTIZE}, which is not on the PATH. It is part of llama.cpp's "
            "releases: https://github.com/ggml-org/llama.cpp/releases. q8_0 needs no other program."
        )
    return path


def run_quantize(program: str, source: Path, target: Path, precision: str) -> None:
    """Quantize a GGUF file. Raises MachineError with the program's last message if it fails."""
    done = subprocess.run([program, str(source), str(target), precision.upper()], capture_output=True, text=True,
                          check=False)  # fmt: skip
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise MachineError(f"{program} failed with exit code {done.returncode}: {(lines or ['no message'])[-1]}")
