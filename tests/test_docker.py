"""Build the image from a fresh clone and run it as a user who is not root."""

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
    """Every path of an image: type, mode, owner, and sha256 or link target."""
    container = engine.docker("create", image).strip()
    entries = {}
    with (
        subprocess.Popen(
            [engine.client, "export", container], env=engine.environment, stdout=subprocess.PIPE
        ) as export,
        tarfile.open(fileobj=export.stdout, mode="r|") as tar,
    ):
        for member in tar:
            content = sha256(tar.extractfile(member).read()).hexdigest() if member.isreg() else member.linkname
            entries[member.name] = (member.type, oct(member.mode), member.uid, member.gid, content)
    engine.docker("rm", container)
    return entries


@pytest.fixture(scope="session")
def files(engine, image):
    return listing(engine, "recipe-test:cpu")


@pytest.mark.docker
def test_the_image_has_its_labels_and_does_not_run_as_root(engine, image, cloned):
    config = json.loads(engine.docker("image", "inspect", "recipe-test:cpu"))[0]["Config"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=cloned, capture_output=True, text=True, check=True).stdout
    labels = config["Labels"]
    assert labels["org.opencontainers.image.revision"] == commit.strip()
    assert labels["recipe.lock.sha256"] == sha256((cloned / "requirements/cpu.lock").read_bytes()).hexdigest()
    assert labels["org.opencontainers.image.version"] and config["Healthcheck"]["Test"] == ["CMD", "recipe", "params"]
    assert config["Entrypoint"] == ["/usr/bin/tini", "-g", "--"] and not config["User"].startswith(("0", "root"))
    out = engine.docker("run", *HARDENED, "recipe-test:cpu", "sh", "-c", "id -u && recipe params registry.name")
    assert out.split() == ["1000", "recipe-demo"]


def layers_contain(engine, image, token):
    """Whether the image's JSON or a file of any layer contains the bytes, even if a later layer removes the file."""
    with (
        subprocess.Popen([engine.client, "save", image], env=engine.environment, stdout=subprocess.PIPE) as saved,
        tarfile.open(fileobj=saved.stdout, mode="r|") as tar,
    ):
        contained = False
        for member in tar:
            if not member.isreg():
                continue
            content = io.BufferedReader(tar.extractfile(member))
            start = content.peek(4)
            assert not start.startswith(ZSTANDARD), f"{member.name} uses a compression that this test can't read"
            content, tail = gzip.GzipFile(fileobj=content) if start.startswith(GZIP) else content, b""
            while chunk := content.read(1 << 24):
                contained = contained or token in tail + chunk
                tail = chunk[-len(token) :]
        saved.stdout.read()  # read the padding too, or docker fails with a broken pipe
    assert saved.returncode == 0
    return contained


GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


@pytest.mark.docker
def test_no_layer_contains_a_secret(engine, image):
    """The build had the token in its environment and in the certificate file."""
    assert SECRET not in engine.docker("history", "--no-trunc", "recipe-test:cpu")
    assert not layers_contain(engine, "recipe-test:cpu", SECRET.encode())


@pytest.mark.docker
def test_a_secret_in_a_layer_is_detected(engine, image):
    """A careless Dockerfile: one instruction writes the secret, the next removes it."""
    careless = f"FROM {engine.base}\nRUN echo {SECRET} >/token\nRUN rm /token\n"
    engine.docker("build", "--network", "host", "-t", "recipe-careless", "-", input=careless)
    assert layers_contain(engine, "recipe-careless", SECRET.encode())
    assert SECRET in engine.docker("history", "--no-trunc", "recipe-careless")
    engine.docker("rmi", "-f", "recipe-careless")


@pytest.mark.long
@pytest.mark.docker
def test_two_builds_contain_the_same_files(engine, image, files, place, wheel):
    """The second build uses another clone and umask, and no build cache except pip's downloads."""
    other = clone(place / "other", wheel, umask=0o002)
    options = "--network host --no-cache"
    make(engine, other, "docker-build", LOCK="cpu", IMAGE="recipe-again:cpu", BUILD_OPTIONS=options)
    again = listing(engine, "recipe-again:cpu")
    differing = sorted(name for name in files.keys() | again.keys() if files.get(name) != again.get(name))
    engine.docker("rmi", "-f", "recipe-again:cpu")
    assert len(files) > 20_000 and differing == []


@pytest.mark.docker
def test_two_builds_have_one_digest(engine, image, place, wheel):
    """Needs BuildKit 0.13 or newer, which can set file dates to the commit's date."""
    output = engine.docker("buildx", "inspect", check=False)
    version = re.search(r"BuildKit version: +v?(\d+)\.(\d+)", output)
    if not version or (int(version[1]), int(version[2])) < (0, 13):
        pytest.skip(f"BuildKit is older than 0.13, or buildx is missing: {output.strip().splitlines()[-1]}")
    digests = set()
    for name in ("first", "second"):
        folder = clone(place / name, wheel)
        export = f"--output type=oci,dest={place / name}.tar,rewrite-timestamp=true"
        make(engine, folder, "docker-build", LOCK="cpu", BUILD_OPTIONS=f"--network host --no-cache {export}")
        with tarfile.open(place / f"{name}.tar") as tar:
            digests.add(json.load(tar.extractfile("index.json"))["manifests"][0]["digest"])
        (place / f"{name}.tar").unlink()
    assert len(digests) == 1


@pytest.mark.docker
def test_a_code_change_does_not_reinstall_packages(engine, image, cloned):
    path = cloned / "recipe" / "core" / "errors.py"
    before = path.read_text()
    path.write_text(before + "# A comment.\n")
    started = time.monotonic()
    output = make(engine, cloned, "docker-build", LOCK="cpu", IMAGE="recipe-changed:cpu")
    print(f"\nbuilt after a change of code in {time.monotonic() - started:.1f} s")
    path.write_text(before)
    # BuildKit's plain output: the step's number, its command, then its result.
    [install] = re.findall(r"^#(\d+) \[environment .*\] RUN --mount", output, flags=re.MULTILINE)
    assert re.search(rf"^#{install} CACHED", output, flags=re.MULTILINE)
    engine.docker("rmi", "-f", "recipe-changed:cpu")


def run_options(folder):
    return (*HARDENED, "--user", f"{USER}:{USER}", "--mount", f"type=bind,source={folder},target=/workspace")


class Run:
    """`make docker-demo` in the background, optionally in a terminal, and its container."""

    def __init__(self, engine, folder, number, terminal=False):
        self.engine, self.log = engine, folder.parent / f"run-{number}.log"
        command, environment = engine.as_user(
            "make", "docker-demo", folder=folder.parent, RUN_OPTIONS="--label recipe-test"
        )
        if terminal:
            sized = f"stty cols 100 rows 30; exec {shlex.join(command)}"  # without a width there is no progress bar
            command = ["script", "--quiet", "--flush", "--return", "--command", sized, str(self.log)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.PIPE if terminal else None, text=True,
                stdout=subprocess.DEVNULL if terminal else log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def output(self):
        return self.log.read_text()

    def wait_for(self, pattern):
        """Wait until the output contains a pattern; fail if the command ends without it."""
        deadline = time.monotonic() + 420
        while not re.search(pattern, self.output()):
            assert self.process.poll() is None and time.monotonic() < deadline, (pattern, self.output()[-3000:])
            time.sleep(0.5)

    def container(self):
        [container] = self.engine.docker("ps", "-q", "--filter", "label=recipe-test").split()
        return container


@pytest.mark.long
@pytest.mark.docker
def test_the_demo_produces_the_same_lock_after_stops_a_kill_and_a_concurrent_run(engine, image, cloned):
    """dvc.lock equals that of a run outside of the container: the committed one, or one created here."""
    expected = (cloned / "dvc.lock").read_bytes()
    (cloned / "dvc.lock").unlink()  # the run creates it

    run = Run(engine, cloned, 1, terminal=True)
    run.wait_for(r"[^0-9]1[2-9]\d/541")  # the progress bar of a terminal
    started = time.monotonic()
    second = subprocess.run(
        [engine.client, "run", *run_options(cloned), "recipe-test:cpu"], env=engine.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    seconds = time.monotonic() - started
    assert second.returncode == 4 and seconds < 5, (seconds, second.stdout)
    assert (
        f"error: container {run.container()}, since 20" in second.stdout
        and "is running in this folder" in second.stdout
    )

    run.process.stdin.write("\x03")  # Ctrl-C
    run.process.stdin.flush()
    assert run.process.wait(60) != 0
    assert re.search(r"training was stopped after step \d+ of 541", run.output()) and "Error 130" in run.output()

    run = Run(engine, cloned, 2)
    run.wait_for(r"resuming from checkpoint-\d+\n")
    run.wait_for(r"step 2\d0/541")
    logs = engine.docker("logs", run.container())  # no progress bar there: a line per point of the loss curve
    line = r"^step 2\d0/541: loss \d\.\d{3}, [\d,]+ tokens, [\d,]+ tokens/s, \d+ (s|min) left$"
    assert re.search(line, logs, flags=re.MULTILINE) and not set(logs) & set("\r\x1b"), logs[-3000:]
    engine.docker("stop", run.container())
    assert run.process.wait(30) != 0
    stopped = re.search(r"training was stopped after step (\d+) of 541", run.output())
    assert stopped and "Error 143" in run.output(), run.output()[-3000:]
    assert list(cloned.glob(f".recipe/checkpoints/*/checkpoint-{stopped[1]}/complete.json"))

    run = Run(engine, cloned, 3)
    run.wait_for(rf"resuming from checkpoint-{stopped[1]}\n")
    run.wait_for(r"step 3\d0/541")
    engine.docker("kill", run.container())
    assert run.process.wait(30) != 0
    remaining = subprocess.run(
        ["pgrep", "-f", "-u", str(USER), "recipe/__main__.py"], capture_output=True, text=True, check=False
    )
    assert remaining.stdout == "" and not engine.docker("ps", "-q", "--filter", "label=recipe-test")

    run = Run(engine, cloned, 4)
    run.wait_for(r"resuming from checkpoint-3\d0")
    assert run.process.wait(420) == 0, run.output()[-3000:]
    assert "The adapter is better than its base" in run.output()

    if (cloned / "dvc.lock").read_bytes() != expected:  # this processor is not of the committed run's type
        expected = lock_outside(cloned)
    assert (cloned / "dvc.lock").read_bytes() == expected
    # A rebuild of one stage within a container; the long test rebuilds all.
    output = make(engine, cloned, "docker-verify", LOCK="cpu", RECIPE=".", OPTIONS="--stage prepare")
    assert "identical: the rebuild has the recorded bytes" in output, output[-3000:]
    owners = {path.lstat().st_uid for path in cloned.rglob("*")}
    assert owners == {USER} if os.geteuid() == 0 else {os.getuid()}

    image_id = engine.docker("image", "inspect", "--format", "{{.Id}}", "recipe-test:cpu").strip()
    with sqlite3.connect(cloned / "mlflow" / "mlflow.db") as store:
        for table in ("tags", "model_version_tags"):
            assert store.execute(f"select value from {table} where key = 'image'").fetchall() == [(image_id,)], table


@pytest.mark.long
@pytest.mark.docker
def test_a_commit_is_rebuilt_identically_in_a_container(engine, image, cloned):
    output = make(engine, cloned, "docker-verify", LOCK="cpu", RECIPE=".")
    assert "identical: the rebuild has the recorded bytes" in output, output[-3000:]


def lock_outside(folder):
    """The dvc.lock of a run of the same files without a container."""
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
def test_a_plan_uses_the_memory_limit_of_its_container(engine, image):
    out = engine.docker("run", "--memory", "1g", *HARDENED, "recipe-test:cpu", "recipe", "plan")
    assert " of 1.1 GB (CPU)" in out, out


@pytest.mark.docker
def test_tests_pass_inside_the_image(engine, image, cloned):
    """Run the tests of reading, packing, training and fetching as the image's user, with a read-only root."""
    files = ["tests/test_packing.py", "tests/test_rows.py", "tests/test_train.py", "tests/test_fetch.py"]
    out = engine.docker(
        "run", *run_options(cloned), "--env", "HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis", "recipe-test:cpu",
        "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow and not long", *files,
    )  # fmt: skip
    assert re.search(r"\d+ passed", out) and "failed" not in out, out[-3000:]


REQUIRED_PACKAGES = "torch transformers datasets peft trl bitsandbytes click mlflow dvc".split()


@pytest.mark.cuda_image
def test_the_cuda_image_contains_cuda_and_every_package(engine, cloned):
    """Run this after a change of requirements/cuda.lock."""
    started = time.monotonic()
    make(engine, cloned, "docker-build", LOCK="cuda", IMAGE="recipe-test:cuda")
    size = int(engine.docker("image", "inspect", "--format", "{{.Size}}", "recipe-test:cuda"))
    code = f"import torch, triton, {', '.join(REQUIRED_PACKAGES)}; print('cuda', torch.version.cuda, torch.__version__)"
    out = engine.docker("run", *run_options(cloned), "recipe-test:cuda", "python", "-c", code)
    seconds = time.monotonic() - started
    print(f"\nrecipe-test:cuda has {size / 1e9:.2f} GB, built in {seconds:.0f} s; {out.splitlines()[-1]}")
    assert re.search(r"^cuda \d+\.\d", out, flags=re.MULTILINE)
    print(engine.docker("run", *run_options(cloned), "recipe-test:cuda", "sh", "-c", LARGEST))


LARGEST = "du -sm /opt/recipe/lib/python3.11/site-packages/* | sort -rn | head -8; du -sm /opt/recipe /usr /workspace"
