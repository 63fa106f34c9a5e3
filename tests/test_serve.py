"""`recipe serve`: the trained model over OpenAI's API, asked by OpenAI's client, and never another model."""

import ast
import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import openai
import pytest
from aiohttp import web
from conftest import enter_copy, invoke, small_recipe
from safetensors.torch import load_file, save_file
from trained_models import CASES, made

from recipe.core.adapter import WEIGHTS
from recipe.core.errors import MachineError, ParamsError
from recipe.core.paths import read_paths
from recipe.export.deployed import export_for_vllm
from recipe.export.llama import run_converter
from recipe.export.merged import write_merged
from recipe.export.trained import trained_here
from recipe.serve.check import problem
from recipe.serve.engine import Engine, free_port
from recipe.serve.gateway import application, run, unsupported_messages
from recipe.serve.invocations import CHAT, Unsupported, row_of
from recipe.tokens.tokenizer import load_tokenizer

RUNS = ("fetch data", "fetch model", "prepare", "analyze", "train", "evaluate", "register")
CHECK = {"answer": "a b c d", "base_answer": "x y z"}


def test_an_answer_is_the_adapters_or_a_problem():
    assert problem(CHECK, " a b c d\n", exact=True) is None
    assert problem(CHECK, "a b c e", exact=False) is None
    assert "but the trained adapter answers 'a b c d'" in problem(CHECK, "a b c e", exact=True)
    assert "ignores the adapter" in problem(CHECK, "x y z", exact=False)
    assert "ignores the adapter" in problem(CHECK, "x y", exact=True)
    assert "but the trained adapter" in problem(CHECK, "", exact=False)


def test_messages_on_which_a_model_was_not_trained_are_refused():
    def messages(*roles):
        return [{"role": role, "content": "a"} for role in roles]

    single, turns = {"system": False, "turns": False}, {"system": False, "turns": True}
    assert unsupported_messages(messages("user"), single) is None
    assert "single prompts" in unsupported_messages(messages("user", "assistant", "user"), single)
    assert unsupported_messages(messages("user", "assistant", "user"), turns) is None
    assert "no place for a system message" in unsupported_messages(messages("system", "user"), turns)
    for invalid in (None, "Hi", ["Hi"], messages("system", "user")):  # left to the engine
        assert unsupported_messages(invalid, {}) is None


class InThread:
    """An aiohttp application that runs in a thread."""

    def __init__(self, app):
        self.port, self.loop, ready = free_port(), asyncio.new_event_loop(), threading.Event()

        async def start():
            self.runner = web.AppRunner(app)
            await self.runner.setup()
            await web.TCPSite(self.runner, "127.0.0.1", self.port).start()
            ready.set()

        def run():
            self.loop.run_until_complete(start())
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert ready.wait(10)
        self.address = f"http://127.0.0.1:{self.port}"

    def client(self, key="none"):
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0)

    def close(self):
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)


@pytest.fixture
def engine():
    """A stand-in for an engine: it returns the request's body as the answer, or fails with what the body asks for."""

    async def answer(request):
        body = await request.json()
        if body.get("stream"):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for word in ("a", "b"):
                chunk = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m",
                         "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}  # fmt: skip
                await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                await asyncio.sleep(0.2)
            await response.write(b"data: [DONE]\n\n")
            return response
        if body.get("user") == "too long":
            return web.json_response({"error": {"message": "the context has 8 tokens", "code": 400}}, status=400)
        message = {"role": "assistant", "content": json.dumps(body)}
        return web.json_response({"id": "1", "object": "chat.completion", "created": 0, "model": "m",
                                  "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})  # fmt: skip

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    server = InThread(app)
    yield server
    server.close()


MESSAGES = [{"role": "user", "content": "Hi"}]


def test_the_gateway_passes_requests_on_and_refuses_what_is_not_for_this_model(engine):
    gateway = InThread(application(engine.address, "mine", "secret", upstream_name="/a/folder"))
    try:
        client = gateway.client("secret")
        sent = json.loads(client.chat.completions.create(model="mine", messages=MESSAGES).choices[0].message.content)
        assert sent == {"temperature": 0, "model": "/a/folder", "messages": MESSAGES}
        sent = client.chat.completions.create(model="mine", messages=MESSAGES, temperature=None)
        assert json.loads(sent.choices[0].message.content)["temperature"] == 0  # engines would sample
        sent = client.chat.completions.create(model="mine", messages=MESSAGES, temperature=0.7)
        assert json.loads(sent.choices[0].message.content)["temperature"] == 0.7
        stream = client.chat.completions.create(model="mine", messages=MESSAGES, stream=True)
        times = [time.monotonic() for _ in stream]
        assert len(times) == 2 and times[1] - times[0] > 0.1  # each part as soon as the engine sends it
        assert [model.id for model in client.models.list()] == ["mine"]
        with pytest.raises(openai.NotFoundError, match=r"there is no model 'gpt-4' here. This server has 'mine'"):
            client.chat.completions.create(model="gpt-4", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError, match="the context has 8 tokens"):
            client.chat.completions.create(model="mine", messages=MESSAGES, user="too long")
        with pytest.raises(openai.AuthenticationError, match="the API key is missing or wrong"):
            gateway.client("other").chat.completions.create(model="mine", messages=MESSAGES)
        odd = urllib.request.Request(f"{gateway.address}/v1/completions", b"{}", {"Authorization": "Bearer \xff"})
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(odd)
        request = urllib.request.Request(f"{gateway.address}/v1/completions", b"{", {"Authorization": "Bearer secret"})
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request)
    finally:
        gateway.close()


def test_the_gateway_says_that_the_engine_is_gone():
    gateway = InThread(application(f"http://127.0.0.1:{free_port()}", "mine"))
    try:
        with pytest.raises(openai.InternalServerError, match="the engine gave no answer"):
            gateway.client().chat.completions.create(model="mine", messages=MESSAGES)
    finally:
        gateway.close()


def test_an_engine_that_ends_at_the_start_is_reported_with_its_last_line(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    engine = Engine(command, f"http://127.0.0.1:{free_port()}", tmp_path / "log")
    with engine, pytest.raises(MachineError, match="the engine ended with code 1: no such model"):
        engine.wait()


def test_a_wider_address_needs_a_key(monkeypatch):
    monkeypatch.delenv("RECIPE_API_KEY", raising=False)
    for key in ("", " --api-key="):  # an empty key would let everyone in
        result = invoke(f"serve --host 0.0.0.0{key}")
        assert result.exit_code == 2 and "0.0.0.0 can be reached from other machines, so --api-key" in result.output


def test_options_that_an_engine_does_not_have_are_refused():
    for engine in ("transformers", "mlflow"):
        for option in ("parallel", "context"):
            result = invoke(f"serve --engine {engine} --{option} 2")
            assert result.exit_code == 2 and f"--{option}: {engine} has no such setting" in result.output


def test_a_taken_port_is_reported_before_anyone_is_told_to_connect():
    told = []
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="address already in use"):
            run(application(f"http://127.0.0.1:{free_port()}", "mine"), *taken.getsockname(), lambda: told.append(1))
    assert not told


def test_an_engine_ends_with_the_process_that_started_it(tmp_path):
    """Killed with SIGKILL, the process can end nothing itself."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    code = f"""
import time
from pathlib import Path
from recipe.serve.engine import Engine
engine = Engine({sleeper!r}, "http://127.0.0.1:1", Path({str(tmp_path / "log")!r}))
print(engine.process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        engine = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and Path(f"/proc/{engine}").exists():
        state = Path(f"/proc/{engine}/stat").read_text().rsplit(")", 1)[1].split()[0]
        if state == "Z":  # ended, but not yet collected by the init process of this machine
            return
        time.sleep(0.1)
    assert not Path(f"/proc/{engine}").exists()


def chat_row(n):
    system = [{"role": "system", "content": "Be brief."}] if n % 2 else []
    return {"messages": [
        *system, {"role": "user", "content": f"Say number {n}."}, {"role": "assistant", "content": f"{n} {n}"},
    ]}  # fmt: skip


@pytest.fixture(scope="module")
def complete(tiny_base, llama, tmp_path_factory):
    """A repository whose recipe `quick` was trained on chats and has learned its rows."""
    changes = {
        "max_generations: 450": "max_generations: 3", "max_new_tokens: 64": "max_new_tokens: 2",
        "num_epochs: 1 ": "num_epochs: 8 ", "global_batch_size: 4": "global_batch_size: 1",
    }  # fmt: skip
    repository = tmp_path_factory.mktemp("serve") / "repository"
    small_recipe(repository, tiny_base, invoke, changes, RUNS, chat_row)
    (repository / ".recipe").mkdir(exist_ok=True)
    (repository / ".recipe" / llama.name).symlink_to(llama)
    return repository


@pytest.fixture
def folder(complete, tmp_path, monkeypatch):
    return enter_copy(complete, tmp_path, monkeypatch)


class Served:
    """`recipe serve` in a process, ready for requests."""

    def __init__(self, *options):
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "recipe", "serve", "--port", str(self.port), *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith("ready:"):
                break
        else:
            self.process.wait(30)
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def ask(self, text, **options):
        messages = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(model="quick", messages=messages, **options)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def adapters_answer(text):
    """The answer of `recipe chat`."""
    done = subprocess.run([sys.executable, "-m", "recipe", "chat", "--max-new-tokens", "24"], input=text + "\n",
                          capture_output=True, text=True, check=True)  # fmt: skip
    return done.stdout.strip()


@pytest.mark.slow
def test_llama_cpp_serves_a_registered_version_to_openais_client(folder):
    wanted = adapters_answer("Say number 7.")
    served = Served("models:/quick@champion", "--dtype", "float32", "--parallel", "2", "--context", "256")
    try:
        assert any(line.startswith("checked: the server answers") for line in served.lines), served.lines
        assert served.ask("Say number 7.", max_tokens=24).choices[0].message.content.strip() == wanted
        parts = [
            chunk.choices[0].delta.content or "" for chunk in served.ask("Say number 7.", max_tokens=24, stream=True)
        ]
        assert "".join(parts).strip() == wanted and len(parts) > 2
        stopped = served.ask("Say number 7.", max_tokens=24, stop=[wanted[-1]]).choices[0]
        assert stopped.message.content == wanted.partition(wanted[-1])[0] and stopped.finish_reason == "stop"
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say number 7."}]
        assert served.client.chat.completions.create(model="quick", messages=messages, max_tokens=8).choices
        with ThreadPoolExecutor(32) as pool:
            answers = list(pool.map(lambda n: served.ask(f"Say number {n % 4}.", max_tokens=8), range(32)))
        texts = [answer.choices[0].message.content for answer in answers]
        assert len(texts) == 32 and all(texts[n] == texts[n % 4] for n in range(32))
        with pytest.raises(openai.BadRequestError, match="context"):
            served.ask("Say number 7. " * 300)
        with pytest.raises(openai.NotFoundError):
            served.client.chat.completions.create(model="other", messages=messages)

        # SIGTERM: an open answer is finished, and no other is begun.
        stream = served.ask("Say number 7.", max_tokens=200, stream=True, extra_body={"ignore_eos": True})
        next(iter(stream))
        served.process.send_signal(signal.SIGTERM)
        rest = list(stream)
        assert rest[-1].choices[0].finish_reason == "length"
        assert served.process.wait(60) == 0
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", served.port))
    finally:
        served.process.kill()


@pytest.mark.slow
def test_a_server_that_ignores_the_adapter_does_not_stay_up(folder, llama):
    assert invoke("export --to gguf --dtype float32").exit_code == 0
    [file] = (folder / "exports" / "gguf-float32").glob("*.gguf")
    trained = trained_here(read_paths(folder))
    adapter = shutil.copytree(trained.adapter, folder / "zero")
    weights = load_file(adapter / WEIGHTS)
    save_file({name: weight * (0 if "lora_B" in name else 1) for name, weight in weights.items()}, adapter / WEIGHTS)
    (folder / "model").mkdir()
    write_merged(replace(trained, adapter=adapter), folder / "model", "float32", "original")
    run_converter(llama, {
        "model": str(folder / "model"), "out": str(file), "name": "quick", "pre": "gpt-2", "adds_bos": False,
        "end_ids": trained.meta["end_token_ids"],
    })  # fmt: skip
    served = Served("--dtype", "float32")
    assert served.process.returncode == 5 and not any(line.startswith("ready") for line in served.lines)
    assert "the server was stopped: the server answers" in served.lines[-1], served.lines


@pytest.mark.slow
def test_transformers_serves_the_merged_model(folder):
    served = Served("--engine", "transformers")
    try:
        assert any(line.startswith("checked: the server answers") for line in served.lines), served.lines
        wanted = adapters_answer("Say number 7.")
        assert served.ask("Say number 7.", max_tokens=24).choices[0].message.content.strip() == wanted
        parts = [
            choice.delta.content or "" for chunk in served.ask("Say number 7.", max_tokens=24, stream=True)
            for choice in chunk.choices
        ]  # fmt: skip
        assert "".join(parts).strip() == wanted
        assert served.stop() == 0
    finally:
        served.process.kill()


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A program `vllm` that stands in for the real one, which needs a GPU."""
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    stand_in = Path(__file__).with_name("vllm_stand_in.py")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.slow
def test_vllm_serves_the_adapter_and_not_the_base_model(folder, vllm):
    served = Served("--engine", "vllm", "--context", "300")
    try:
        assert any(line.startswith("checked: the server answers") for line in served.lines), served.lines
        files = {path.relative_to(folder / "exports").as_posix() for path in (folder / "exports").rglob("*")}
        assert {"vllm-bfloat16/adapter/adapter_model.safetensors", "vllm-bfloat16/base/model.safetensors"} <= files
        weights, source = folder / "exports/vllm-bfloat16/base/model.safetensors", trained_here(read_paths(folder))
        assert weights.stat().st_ino == source.base_files()[-1].resolve().stat().st_ino  # a link, not a copy
        answer = served.ask("Say number 7.", max_tokens=24).choices[0].message.content
        stream = served.ask("Say number 7.", max_tokens=24, stream=True)
        assert "".join(part.choices[0].delta.content for part in stream) == answer
        with pytest.raises(openai.BadRequestError, match="maximum context length is 300"):
            served.ask("Say number 7. " * 300)
        with pytest.raises(openai.NotFoundError):  # vLLM would answer with the base model
            messages = [{"role": "user", "content": "Say number 7."}]
            base = str((folder / "exports/vllm-bfloat16/base").resolve())
            served.client.chat.completions.create(model=base, messages=messages)
        assert served.stop() == 0
    finally:
        served.process.kill()

    # The same folder, as in vLLM's image: without the recipe.
    port = free_port()
    command = [sys.executable, "-m", "recipe.serve", "exports/vllm-bfloat16", "--name", "mine", "--port", str(port),
               "--log", "engine.log"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("ready"):
                break
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert process.returncode == 0 and any(line.startswith("checked") for line in lines), lines

    # vLLM ignores tensors whose names it does not know, without a word.
    adapter = folder / "exports" / "vllm-bfloat16" / "adapter" / WEIGHTS
    renamed = {
        name.replace("model.layers", "language_model.layers"): value for name, value in load_file(adapter).items()
    }
    save_file(renamed, adapter)
    served = Served("--engine", "vllm")
    assert served.process.returncode == 5 and "so it ignores the adapter" in served.lines[-1], served.lines


def test_what_runs_in_vllms_image_needs_none_of_the_recipes_packages():
    code = """
import sys
import recipe.serve.__main__
print(sorted({name.split(".")[0] for name in sys.modules}
             & {"torch", "transformers", "mlflow", "click", "pydantic", "ruamel", "numpy", "peft", "jinja2", "dvc"}))
print(sorted(name for name in sys.modules if name.startswith("recipe.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages, modules = done.stdout.splitlines()
    assert packages == "[]"
    assert all(name.split(".")[1] in ("serve", "core") for name in ast.literal_eval(modules))


def test_vllm_must_be_installed(monkeypatch, tmp_path, folder):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = invoke("serve --engine vllm")
    assert result.exit_code == 4 and "it runs in its own image: make services-serve" in result.output
    assert not (folder / "exports").exists()
    result = invoke("serve --engine mlflow")
    assert result.exit_code == 2 and "name a registered version" in result.output


@pytest.mark.parametrize(
    ("case", "options", "reason"),
    [
        ("grown", {}, "the base model has 3.. rows, and none for 1 tokens of the tokenizer, such as <new>"),
        ("Llama", {"tokens": (5,)}, "but the adapter also contains"),
        ("Llama", {"quantization": "nf4"}, "was trained on a base model in nf4"),
    ],
)
def test_what_vllm_would_load_in_part_is_refused(tmp_path, case, options, reason):
    family, changes, lora = CASES[case]
    trained = made(tmp_path, family, changes, lora, **options)
    if case == "grown":
        tokenizer = load_tokenizer(trained.tokenizer)
        tokenizer.add_tokens(["<new>"])
        tokenizer.save_pretrained(trained.tokenizer)
    with pytest.raises(ParamsError, match=f"{reason}.*recipe export --to merged"):
        export_for_vllm(trained, tmp_path / "out", "bfloat16", tmp_path, print)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("path", "changes", "reason"),
    [
        ("/v1/completions", {}, "answers only /v1/chat/completions"),
        (CHAT, {"stream": True}, "does not stream"),
        (CHAT, {"temperature": 0.7}, "decodes greedily"),
        (CHAT, {"stop": ["."], "top_p": 0.9}, "does not know stop, top_p"),
        (CHAT, {"messages": []}, "must be a list of messages"),
    ],
)
def test_what_mlflows_server_does_not_do_is_refused(path, changes, reason):
    body = {"model": "m", "messages": MESSAGES, "temperature": 0, **changes}
    with pytest.raises(Unsupported, match=reason):
        row_of(path, body, {"messages": "messages"})
    assert row_of(CHAT, {"messages": MESSAGES}, {"prompt": "instruction"}) == {"instruction": "Hi"}


@pytest.mark.slow
def test_mlflow_serves_the_registered_version(folder):
    served = Served("models:/quick@champion", "--engine", "mlflow")
    try:
        assert any(line.startswith("checked: the server answers") for line in served.lines), served.lines
        wanted = adapters_answer("Say number 7.")
        assert served.ask("Say number 7.", max_tokens=24).choices[0].message.content.strip() == wanted
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say number 7."}]
        assert served.client.chat.completions.create(model="quick", messages=messages, max_tokens=8).choices
        with pytest.raises(openai.BadRequestError, match="does not stream"):
            served.ask("Say number 7.", stream=True)
        with pytest.raises(openai.BadRequestError, match="messages"):
            served.client.chat.completions.create(model="quick", messages=[{"role": "nobody"}])
        assert served.stop() == 0
    finally:
        served.process.kill()
