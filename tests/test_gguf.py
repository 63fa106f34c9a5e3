"""GGUF exports, run in llama.cpp: each is the trained model, and each kind of damage is found there too."""

import shutil

import pytest
from gguf import GGUFReader
from tokenizers import Regex, Tokenizer, pre_tokenizers
from trained_models import CASES, DAMAGE, ignore_adapter, made, merged_example, rename_a_tensor, shift_tokens

from recipe.core.errors import MachineError, ParamsError, TrainingError
from recipe.export import gguf
from recipe.export.chat_template import template_problem
from recipe.export.gguf import export_gguf, export_ollama
from recipe.export.limits import LIMITS, problems
from recipe.export.llama import LlamaServer, install, run_converter
from recipe.export.llama_engine import LlamaEngine
from recipe.export.parity import measure
from recipe.tokens.tokenizer import load_tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 128}  # rows of whole blocks for the rounded types
# A random model is unsure of its answers, so that rounding changes them. The demo's answers stay the same.
UNSURE = {"tolerance": LIMITS["rounded"].divergence}
IN_CI = ("grown",)
NOT_IN_LLAMA = {  # how llama.cpp says that it can't represent these models
    "Phi3": "converter can't convert this model: ValueError: Error: Missing .*tokenizer.model",
    "experts": "only 0 of 32 answers are those of the adapter",  # llama.cpp always normalizes the experts' weights
}
KNOWN = {
    **{name: case for name, case in CASES.items() if name not in NOT_IN_LLAMA},
    "experts normalized": ("Qwen3Moe", {"norm_topk_prob": True}, CASES["experts"][2]),
}


def exported(trained, tmp_path, llama, precision="float32", export=export_gguf, **options):
    scratch = tmp_path / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    return export(trained, tmp_path / "out", precision, "tiny", llama, scratch, lambda line: None, **options)


def metadata(path):
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case if case in IN_CI else pytest.param(case, marks=pytest.mark.long) for case in KNOWN]
)
def test_a_gguf_file_is_the_trained_model(case, tmp_path, llama):
    trained = made(tmp_path, *KNOWN[case])
    export = exported(trained, tmp_path, llama)
    [parity] = export.parities.values()
    assert parity.rows == parity.prompts_with_equal_ids == parity.equal_answers == 32
    assert parity.largest_logit_difference < 1e-3 and parity.mean_divergence_from_base > 1e-3 and not export.notes
    facts = metadata(tmp_path / "out" / "tiny-f32.gguf")
    assert facts["recipe.adapter_sha256"] == trained.adapter_sha256 and facts["recipe.prompts"] == "text"
    assert facts["general.name"] == "tiny" and facts["tokenizer.ggml.add_bos_token"] is False


@pytest.mark.long
@pytest.mark.parametrize("case", NOT_IN_LLAMA)
def test_a_model_that_llama_cpp_does_not_support_or_computes_differently_is_refused(case, tmp_path, llama):
    with pytest.raises((ParamsError, TrainingError), match=NOT_IN_LLAMA[case]):
        exported(made(tmp_path, *CASES[case]), tmp_path, llama)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["q8_0", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_rounded_files_are_within_their_limits_and_two_exports_have_the_same_bytes(precision, tmp_path, llama):
    trained = made(tmp_path, "Llama", WIDE)
    parity = exported(trained, tmp_path, llama, precision, **UNSURE).parities["original"]
    assert 1e-9 < parity.mean_divergence < LIMITS["rounded"].divergence
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    exported(trained, tmp_path, llama, precision, **UNSURE)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.long
def test_the_nearer_merge_of_a_quantized_base_is_converted(tmp_path, llama):
    trained = made(tmp_path, "Llama", WIDE, quantization="nf4")
    export = exported(trained, tmp_path, llama, **UNSURE)
    assert list(export.parities) == ["rounded"]
    assert metadata(tmp_path / "out" / "tiny-f32.gguf")["recipe.merged_into"] == "rounded"


@pytest.mark.long
def test_a_tokenizer_that_llama_cpp_can_not_imitate_needs_prompts_as_ids(tmp_path, llama):
    trained = made(tmp_path, "Llama")
    path = trained.tokenizer / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("[aeiou]"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save(str(path))
    export = exported(trained, tmp_path, llama)
    [parity], [note] = export.parities.values(), export.notes
    assert parity.prompts_with_equal_ids < 32 == parity.equal_answers and "Send prompts as token ids" in note
    assert metadata(tmp_path / "out" / "tiny-f32.gguf")["recipe.prompts"] == note
    with pytest.raises(ParamsError, match=r"Ollama takes prompts as text only, but llama.cpp splits text differently"):
        exported(trained, tmp_path, llama, export=export_ollama)


@pytest.mark.long
def test_an_export_for_ollama_has_the_template_and_the_ends_of_the_training(tmp_path, llama):
    trained = made(tmp_path, "Llama", WIDE)
    exported(trained, tmp_path, llama, "q8_0", export_ollama, **UNSURE)
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM ./tiny-q8_0.gguf\n") and 'PARAMETER stop """<|im_end|>"""' in text
    assert '{{ "<|im_end|>\\n<|im_start|>assistant\\n" }}' in text


@pytest.fixture(scope="module")
def good(llama, tmp_path_factory):
    return merged_example(tmp_path_factory.mktemp("good"))


def wrong_template(folder, trained):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_start|>", "<|im_start|> "))


DAMAGE_IN_CI = (ignore_adapter, shift_tokens, wrong_template)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [pytest.param(damage, marks=() if damage in DAMAGE_IN_CI else pytest.mark.long)
     for damage in (*DAMAGE, wrong_template)],
    ids=lambda damage: damage.__name__,
)  # fmt: skip
def test_each_kind_of_damage_is_found_in_llama_cpp(good, damage, tmp_path, llama):
    trained, merged, reference = good
    folder = shutil.copytree(merged, tmp_path / "damaged")
    damage(folder, trained)
    options = {"model": str(folder), "out": str(tmp_path / "model.gguf"), "name": "tiny", "pre": "gpt-2",
               "end_ids": trained.meta["end_token_ids"], "adds_bos": False}  # fmt: skip
    if damage is rename_a_tensor:
        with pytest.raises(ParamsError, match=r"converter can't convert this model: .*other"):
            run_converter(llama, options)
        return
    run_converter(llama, options)
    with LlamaServer(llama, tmp_path / "model.gguf", tmp_path / "log", context=256) as server:
        num_tokens = reference.logits("adapter", 0).shape[1]
        engine = LlamaEngine(server, num_tokens, len(reference.rows), trained.meta["end_token_ids"])
        parity = measure(engine, reference)
        template = template_problem(engine.chat_prompt, load_tokenizer(merged), trained.meta)
    if damage is wrong_template:
        assert "but the model was trained on" in template
        return
    assert template is None and problems(parity, LIMITS["exact"]) and problems(parity, LIMITS["rounded"]), parity
    if damage is shift_tokens:
        assert parity.prompts_with_equal_ids == 0
    else:
        assert parity.largest_logit_difference > 10 * 1e-3 and parity.mean_divergence > 10 * 0.01, parity
    if damage is ignore_adapter:
        assert any("ignore the adapter" in text for text in problems(parity, LIMITS["rounded"]))


def test_small_types_need_llama_quantize_and_its_errors_are_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="needs the program llama-quantize, which is not on the PATH"):
        gguf.find_quantize("q4_k_m")
    program = tmp_path / "llama-quantize"
    program.write_text("#!/bin/sh\necho 'main: failed to quantize model' >&2\nexit 1\n")
    program.chmod(0o755)
    assert gguf.find_quantize("q4_k_m") == str(program) and gguf.find_quantize("q8_0") is None
    with pytest.raises(MachineError, match="failed with exit code 1: main: failed to quantize model"):
        gguf.run_quantize(str(program), tmp_path / "a", tmp_path / "b", "q4_k_m")


def test_an_installation_without_the_package_index_says_what_to_do(tmp_path, monkeypatch):
    for name, value in (("PIP_INDEX_URL", "http://127.0.0.1:9/simple"), ("PIP_EXTRA_INDEX_URL", ""),
                        ("PIP_FIND_LINKS", ""), ("PIP_RETRIES", "0"), ("PIP_CONFIG_FILE", "/dev/null")):  # fmt: skip
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match=r"llama.cpp can't be installed: .*copy the folder"):
        install(tmp_path / "new", print)
    assert not list(tmp_path.glob("new/llama.cpp-*"))


@pytest.mark.slow
def test_a_file_that_is_no_model_is_refused_with_llama_cpps_reason(tmp_path, llama):
    (tmp_path / "model.gguf").write_text("no model")
    with pytest.raises(ParamsError, match=r"llama.cpp can't load the model: .*invalid magic characters"):
        LlamaServer(llama, tmp_path / "model.gguf", tmp_path / "log")
