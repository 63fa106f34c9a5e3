"""The image, built and run for real, as a user who is not root, on a fresh clone."""

import gzip
import io
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import tarfile
import time
from hashlib import sha256
from pathlib import Path

import pytest
from containers import SECRET, USER, clone, make

HARDENED = (
    "--rm", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--tmpfs", "/tmp:exec,mode=1777", "--tmpfs", "/home/recipe:exec,mode=1777",
)  # fmt: skip


def listing(engine, image):
    """Every path of an image: kind, mode, owner, and sha256 or target."""
    container = engine.docker("create", image).strip()
    found = {}
    with (
        subprocess.Popen(
            [engine.client, "export", container], env=engine.environment, stdout=subprocess.PIPE
        ) as export,
        tarfile.open(fileobj=export.stdout, mode="r|") as tar,
    ):
        for one in tar:
            content = sha256(tar.extractfile(one).read()).hexdigest() if one.isreg() else one.linkname
            found[one.name] = (one.type, oct(one.mode), one.uid, one.gid, content)
    engine.docker("rm", container)
    return found


@pytest.fixture(scope="session")
def files(engine, image):
    return listing(engine, "recipe-test:cpu")


@pytest.mark.docker
def test_the_image_says_what_it_is_and_is_not_root(engine, image, cloned):
    told = json.loads(engine.docker("image", "inspect", "recipe-test:cpu"))[0]["Config"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=cloned, capture_output=True, text=True, check=True).stdout
    labels = told["Labels"]
    assert labels["org.opencontainers.image.revision"] == commit.strip()
    assert labels["recipe.lock.sha256"] == sha256((cloned / "requirements/cpu.lock").read_bytes()).hexdigest()
    assert labels["org.opencontainers.image.version"] and told["Healthcheck"]["Test"] == ["CMD", "recipe", "params"]
    assert told["Entrypoint"] == ["/usr/bin/tini", "-g", "--"] and not told["User"].startswith(("0", "root"))
    out = engine.docker("run", *HARDENED, "recipe-test:cpu", "sh", "-c", "id -u && recipe params registry.name")
    assert out.split() == ["1000", "recipe-demo"]


def layers_hold(engine, image, token):
    """Whether a file of any layer, one that a later layer removes too, or the image's own JSON holds the bytes."""
    with (
        subprocess.Popen([engine.client, "save", image], env=engine.environment, stdout=subprocess.PIPE) as saved,
        tarfile.open(fileobj=saved.stdout, mode="r|") as tar,
    ):
        found = False
        for one in tar:
            if not one.isreg():
                continue
            content = io.BufferedReader(tar.extractfile(one))
            start = content.peek(4)
            assert not start.startswith(ZSTANDARD), f"{one.name} is compressed in a way that this test can't read"
            content, tail = gzip.GzipFile(fileobj=content) if start.startswith(GZIP) else content, b""
            while chunk := content.read(1 << 24):
                found = found or token in tail + chunk
                tail = chunk[-len(token) :]
        saved.stdout.read()  # the padding, without which docker would break its pipe
    assert saved.returncode == 0
    return found


GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@pytest.mark.docker
def test_no_layer_holds_a_secret(engine, image):
    """The build had the token twice: in its environment, and in the file of certificates that it was given."""
    assert SECRET not in engine.docker("history", "--no-trunc", "recipe-test:cpu")
    assert not layers_hold(engine, "recipe-test:cpu", SECRET.encode())


@pytest.mark.docker
def test_a_secret_that_a_layer_holds_is_found(engine, image):
    """As a careless Dockerfile would leave it: written by one instruction, removed by the next."""
    careless = f"FROM {engine.base}\nRUN echo {SECRET} >/token\nRUN rm /token\n"
    engine.docker("build", "--network", "host", "-t", "recipe-careless", "-", input=careless)
    assert layers_hold(engine, "recipe-careless", SECRET.encode())
    assert SECRET in engine.docker("history", "--no-trunc", "recipe-careless")
    engine.docker("rmi", "-f", "recipe-careless")


@pytest.mark.docker
def test_two_builds_hold_the_same_files(engine, image, files, place, wheel):
    """Another clone, another umask, nothing cached but what pip and apt download."""
    other = clone(place / "other", wheel, umask=0o002)
    options = "--network host --no-cache"
    make(engine, other, "docker-build", LOCK="cpu", IMAGE="recipe-again:cpu", BUILD_OPTIONS=options)
    again = listing(engine, "recipe-again:cpu")
    differing = sorted(name for name in files.keys() | again.keys() if files.get(name) != again.get(name))
    engine.docker("rmi", "-f", "recipe-again:cpu")
    assert len(files) > 20_000 and differing == []


@pytest.mark.docker
def test_two_builds_have_one_digest(engine, image, place, wheel):
    """Where BuildKit can date files by the commit: 0.13 and newer."""
    told = engine.docker("buildx", "inspect", check=False)
    found = re.search(r"BuildKit version: +v?(\d+)\.(\d+)", told)
    if not found or (int(found[1]), int(found[2])) < (0, 13):
        pytest.skip(f"BuildKit is older than 0.13, or has no buildx: {told.strip().splitlines()[-1]}")
    digests = set()
    for name in ("first", "second"):
        folder = clone(place / name, wheel)
        output = f"--output type=oci,dest={place / name}.tar,rewrite-timestamp=true"
        make(engine, folder, "docker-build", LOCK="cpu", BUILD_OPTIONS=f"--network host --no-cache {output}")
        with tarfile.open(place / f"{name}.tar") as tar:
            digests.add(json.load(tar.extractfile("index.json"))["manifests"][0]["digest"])
        (place / f"{name}.tar").unlink()
    assert len(digests) == 1


@pytest.mark.docker
def test_a_code_change_installs_nothing_again(engine, image, cloned):
    path = cloned / "recipe" / "errors.py"
    before = path.read_text()
    path.write_text(before + "# A comment.\n")
    started = time.monotonic()
    output = make(engine, cloned, "docker-build", LOCK="cpu", IMAGE="recipe-changed:cpu")
    print(f"\nbuilt after a change of code in {time.monotonic() - started:.1f} s")
    path.write_text(before)
    # The classic output of BuildKit: the step's number, its command, then how it went.
    [install] = re.findall(r"^#(\d+) \[environment .*\] RUN --mount", output, flags=re.MULTILINE)
    assert re.search(rf"^#{install} CACHED", output, flags=re.MULTILINE)
    engine.docker("rmi", "-f", "recipe-changed:cpu")


def run_options(folder):
    return (*HARDENED, "--user", f"{USER}:{USER}", "--mount", f"type=bind,source={folder},target=/workspace")


class Run:
    """`make docker-demo` in the background, or in a terminal, and its one container."""

    def __init__(self, engine, folder, number, terminal=False):
        self.engine, self.log = engine, folder.parent / f"run-{number}.log"
        command, environment = engine.as_user(
            "make", "docker-demo", folder=folder.parent, RUN_OPTIONS="--label recipe-test"
        )
        if terminal:
            sized = f"stty cols 100 rows 30; exec {shlex.join(command)}"  # without a width there is no bar
            command = ["script", "--quiet", "--flush", "--return", "--command", sized, str(self.log)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.PIPE if terminal else None, text=True,
                stdout=subprocess.DEVNULL if terminal else log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def output(self):
        return self.log.read_text()

    def said(self, pattern):
        """Wait until the output holds a pattern; fails where the command ends without it."""
        deadline = time.monotonic() + 420
        while not re.search(pattern, self.output()):
            assert self.process.poll() is None and time.monotonic() < deadline, (pattern, self.output()[-3000:])
            time.sleep(0.5)

    def container(self):
        [one] = self.engine.docker("ps", "-q", "--filter", "label=recipe-test").split()
        return one


@pytest.mark.docker
def test_stopped_killed_and_beside_another_the_embedded_recipe_ends_in_the_same_lock(engine, image, cloned):
    """dvc.lock is the one that the run outside of the container made: the committed one, or one made here."""
    wanted = (cloned / "dvc.lock").read_bytes()
    (cloned / "dvc.lock").unlink()  # the run makes it

    run = Run(engine, cloned, 1, terminal=True)
    run.said(r"[^0-9]1[2-9]\d/541")  # the bar of a terminal
    started = time.monotonic()
    beside = subprocess.run(
        [engine.client, "run", *run_options(cloned), "recipe-test:cpu"], env=engine.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - started
    assert beside.returncode == 4 and seconds < 5, (seconds, beside.stdout)
    assert (
        f"error: container {run.container()}, since 20" in beside.stdout
        and "is at work in this folder" in beside.stdout
    )

    run.process.stdin.write("\x03")  # Ctrl-C
    run.process.stdin.flush()
    assert run.process.wait(60) != 0
    assert re.search(r"training was stopped after step \d+ of 541", run.output()) and "Error 130" in run.output()

    run = Run(engine, cloned, 2)
    run.said(r"going on from checkpoint-\d+\n")
    run.said(r"step 2\d0/541")
    logs = engine.docker("logs", run.container())  # no bar there: a line for each point of the curve
    line = r"^step 2\d0/541: loss \d\.\d{3}, [\d,]+ tokens, [\d,]+ tokens/s, \d+ (s|min) left$"
    assert re.search(line, logs, flags=re.MULTILINE) and not set(logs) & set("\r\x1b"), logs[-3000:]
    engine.docker("stop", run.container())
    assert run.process.wait(60) != 0
    stopped = re.search(r"training was stopped after step (\d+) of 541", run.output())
    assert stopped and int(stopped[1]) % 10 == 0 and "Error 143" in run.output(), run.output()[-3000:]
    assert list(cloned.glob(f".recipe/checkpoints/*/checkpoint-{stopped[1]}/complete.json"))

    run = Run(engine, cloned, 3)
    run.said(rf"going on from checkpoint-{stopped[1]}\n")
    run.said(r"step 3\d0/541")
    engine.docker("kill", run.container())
    assert run.process.wait(30) != 0
    left = subprocess.run(
        ["pgrep", "-f", "-u", str(USER), "recipe/__main__.py"], capture_output=True, text=True, check=False
    )
    assert left.stdout == "" and not engine.docker("ps", "-q", "--filter", "label=recipe-test")

    run = Run(engine, cloned, 4)
    run.said(r"going on from checkpoint-3\d0")
    assert run.process.wait(420) == 0, run.output()[-3000:]
    assert "The adapter is better than its base" in run.output()

    if (cloned / "dvc.lock").read_bytes() != wanted:  # another kind of processor than the committed run's
        wanted = outside(cloned)
    assert (cloned / "dvc.lock").read_bytes() == wanted
    owners = {path.lstat().st_uid for path in cloned.rglob("*")}
    assert owners == {USER} if os.geteuid() == 0 else {os.getuid()}

    image_id = engine.docker("image", "inspect", "--format", "{{.Id}}", "recipe-test:cpu").strip()
    with sqlite3.connect(cloned / "mlflow" / "mlflow.db") as store:
        for table in ("tags", "model_version_tags"):
            assert store.execute(f"select value from {table} where key = 'image'").fetchall() == [(image_id,)], table


def outside(folder):
    """The lock of a run without a container, of the same files."""
    other = folder.parent / "outside"
    subprocess.run(["git", "clone", "-q", folder, other], check=True)
    (other / "dvc.lock").unlink()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(
        ["dvc", "repro"],
        cwd=other,
        env={**os.environ, "PATH": path, "PYTHONHASHSEED": "0"},
        check=True,
        capture_output=True,
    )
    return (other / "dvc.lock").read_bytes()


@pytest.mark.docker
def test_a_plan_sees_the_memory_of_its_container(engine, image):
    out = engine.docker("run", "--memory", "1g", *HARDENED, "recipe-test:cpu", "recipe", "plan")
    assert " of 1.1 GB (CPU)" in out, out


@pytest.mark.docker
def test_tests_pass_in_the_image(engine, image, cloned):
    """As its user, with a read-only root: what reads, packs, trains and checks."""
    chosen = ["tests/test_packing.py", "tests/test_rows.py", "tests/test_train.py", "tests/test_fetch.py"]
    out = engine.docker(
        "run", *run_options(cloned), "--env", "HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis", "recipe-test:cpu",
        "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *chosen,
    )  # fmt: skip
    assert re.search(r"\d+ passed", out) and "failed" not in out, out[-3000:]


MISSION = "torch transformers datasets peft trl bitsandbytes click mlflow dvc".split()


@pytest.mark.cuda_image
def test_the_cuda_image_holds_cuda_and_every_package(engine, cloned):
    """After a change of requirements/cuda.lock."""
    started = time.monotonic()
    make(engine, cloned, "docker-build", LOCK="cuda", IMAGE="recipe-test:cuda")
    size = int(engine.docker("image", "inspect", "--format", "{{.Size}}", "recipe-test:cuda"))
    code = f"import torch, triton, {', '.join(MISSION)}; print('cuda', torch.version.cuda, torch.__version__)"
    out = engine.docker("run", *run_options(cloned), "recipe-test:cuda", "python", "-c", code)
    seconds = time.monotonic() - started
    print(f"\nrecipe-test:cuda has {size / 1e9:.2f} GB, built in {seconds:.0f} s; {out.splitlines()[-1]}")
    assert re.search(r"^cuda \d+\.\d", out, flags=re.MULTILINE)
    print(engine.docker("run", *run_options(cloned), "recipe-test:cuda", "sh", "-c", LARGEST))


LARGEST = "du -sm /opt/recipe/lib/python3.11/site-packages/* | sort -rn | head -8; du -sm /opt/recipe /usr /workspace"
