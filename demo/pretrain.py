"""Pretrains the demo's base model: a 2M-parameter Llama, with its own byte-level BPE tokenizer.

Reads the word lists. Writes `demo/base/` (config, safetensors in bf16, tokenizer) and `demo/base/pretrain.log`.
The corpus contains plain sentences, and short series of solved examples of the demo's tasks in a terse notation:

    reverse
    lamp, kite => kite, lamp
    boat, belo, mifur => mifur, belo, boat

The base model can therefore solve a task when it is given examples. But it has never seen an instruction or Alpaca's
template, so it does not follow instructions. As with a real base model, fine-tuning must teach the model to do so. The
corpus contains no held-out words, and most of its words are invented, so that the model learns to copy words instead of
memorizing them.

    python -m demo.pretrain        # about 30 minutes on 2 cores
"""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

# Use the same code path on every x86-64 processor with AVX2. torch reads these variables when it is imported.
os.environ.update(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2", MKL_CBWR="AVX2")

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.rows import CATEGORIES, Words, words_of
from demo.words import invented

SEED = 7
BASE = Path(__file__).parent / "base"
VOCAB_SIZE = 1024
SEQ_LENGTH = 256
BATCH_SIZE = 32  # 32 x 256 = 8,192 tokens per step
NUM_STEPS = int(os.environ.get("DEMO_PRETRAIN_STEPS", "1500"))
PEAK_LEARNING_RATE = 3e-3
END, PAD = "<|endoftext|>", "<|pad|>"

# Each word, each digit and each other character (including a space) is a separate piece. A word therefore has the same
# tokens everywhere, so that a small model can learn to copy the word.
SPLIT = Regex(r"\d|[^\W\d_]+|\s|[^\w\s]|_")

SENTENCES = """
The reverse order of a list starts with its final item. | Turn a list around and the last item is the first item.
To write a word three times, say the word and say it again. | A duplicate is an item that stands twice in the list.
Remove the duplicate and each item stands only once. | One item stands twice. | Put another word into the sentence.
To replace a word, write the same sentence with another word. | The plural form is for more than one.
What is the plural of the word? | The past tense says that something already happened. | It already happened.
A question asks whether something is true. | Ask whether this is true. | Say that it is true.
A greeting for a person asks about the weather. | Greet the person, and ask how the weather is.
Facts are written as JSON, an object with a name and an item. | Turn the sentence into a JSON object.
Which number is larger? | The larger number of the two is the sum. | Sort the numbers from low to high.
Put these numbers in order, low numbers first. | What is the sum of the numbers? | The sum is a number.
Where does {name} live? | Name the city that {name} lives in. | {name} lives in {city}. | {name} has a {noun}.
{name} will {verb}. | Which {noun} is larger? | Give {name} the {noun}. | In the sentence, {name} has a {noun}.
Below is a list that describes a city. | A task is paired with an input. | This provides further context.
Write a letter that completes the order. | An instruction describes a task. | The response completes the request.
{name} appropriately completes the task. | The request is an instruction. | The input provides the context.
""".replace("\n", " ").split(" | ")


def corpus_words(rng: Random) -> Words:
    """Return the words for one document.

    In each list, two thirds of the words are invented and one third are training words.
    """
    return words_of(held=False).mixed(lambda words: [invented(rng) for _ in range(16)] + rng.sample(words, 8))


def prose(rng: Random, words: Words) -> str:
    """Return one to six plain sentences."""
    return " ".join(
        rng.choice(SENTENCES).strip().format(
            name=rng.choice(words.names), city=rng.choice(words.cities),
            noun=rng.choice(words.nouns), verb=rng.choice(words.verbs),
        )
        for _ in range(rng.randint(1, 6))
    )  # fmt: skip


def notation(rng: Random, words: Words, category: str, num_examples: int) -> str:
    """Return a category's tag, followed by `num_examples` solved examples, one per line."""
    make, _ = CATEGORIES[category]
    lines = [category]
    for _ in range(num_examples):
        task = make(rng, words)
        text = f"{task.query}: {task.text}" if task.query else task.text
        lines.append(f"{text} => {task.answer}")
    return "\n".join(lines)


def document(rng: Random) -> str:
    """Return a corpus document, which contains either prose or examples of one category."""
    words = corpus_words(rng)
    if rng.random() < 0.1:
        return prose(rng, words)
    return notation(rng, words, rng.choice(list(CATEGORIES)), rng.randint(1, 6))


def train_tokenizer(rng: Random) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with VOCAB_SIZE tokens on a sample of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(SPLIT, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document(rng) for _ in range(20_000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def batches(rng: Random, tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """Yield an endless series of int64 tensors (batch, seq), cut from a single stream of documents."""
    stream: list[int] = []
    need = BATCH_SIZE * SEQ_LENGTH
    while True:
        while len(stream) < need:
            texts = [document(rng) for _ in range(200)]
            for ids in tokenizer(texts)["input_ids"]:
                stream += [*ids, tokenizer.eos_token_id]
        yield torch.tensor(stream[:need]).view(BATCH_SIZE, SEQ_LENGTH)
        del stream[:need]


def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, category: str, count: int = 30) -> float:
    """Return the share of a category's held-out examples that the model solves.

    Each prompt starts with three solved examples of the same category.
    """
    rng, num_correct = Random(f"{SEED}/{category}"), 0
    for _ in range(count):
        words = words_of(held=True)
        # Use only four names. This keeps passages short, so that four of them fit into SEQ_LENGTH tokens.
        words = Words(rng.sample(words.names, 4), words.cities, words.nouns, words.verbs, held=True)
        shown, answer = notation(rng, words, category, 4).rsplit(" => ", 1)
        ids = tokenizer(f"{shown} => ", return_tensors="pt")["input_ids"]
        output = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        num_correct += tokenizer.decode(output[0, ids.shape[1] :]).split("\n")[0].removesuffix(END) == answer
    return num_correct / count


def main() -> None:
    """Train the tokenizer and the model, and write them and the log."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    rng = Random(SEED)
    tokenizer = train_tokenizer(rng)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    BASE.mkdir(exist_ok=True)
    with (BASE / "pretrain.log").open("w", encoding="utf-8") as log:

        def log_line(**facts: object) -> None:
            line = json.dumps(facts)
            print(line, file=log, flush=True)
            print(line, flush=True)

        log_line(parameters=model.num_parameters(), vocab_size=len(tokenizer), steps=NUM_STEPS, torch=torch.__version__)
        started = time.monotonic()
        for step, input_ids in zip(range(NUM_STEPS), batches(rng, tokenizer), strict=False):
            warmup = min(1.0, (step + 1) / 100)
            rate = PEAK_LEARNING_RATE * warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / NUM_STEPS)))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = model(input_ids=input_ids, labels=input_ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step % 50 == 0 or step == NUM_STEPS - 1:
                log_line(step=step, loss=round(loss.item(), 4), seconds=round(time.monotonic() - started))
            if step % 500 == 499:
                model.save_pretrained(BASE)
        model = model.to(torch.bfloat16).eval()
        model.save_pretrained(BASE)
        tokenizer.save_pretrained(BASE)
        model = model.float()
        log_line(
            few_shot_accuracy={category: round(accuracy(model, tokenizer, category), 3) for category in CATEGORIES}
        )


if __name__ == "__main__":
    main()
