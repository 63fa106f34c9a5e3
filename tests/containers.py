"""A container engine and a base image for tests: existing ones, else started and built from Debian's packages."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hf_plantedTokenThatNoLayerMayHold"  # in the environment of the image build
# Runs the containers and owns the clones that are mounted into them.
USER = 1000 if os.geteuid() == 0 else os.getuid()


class Engine:
    """Docker for tests: a client, its environment, and a base image."""

    def __init__(self, client, environment):
        self.client, self.environment, self.base = client, environment, None

    def docker(self, *arguments, check=True, **options):
        """Run a docker command and return its output."""
        done = subprocess.run(
            [self.client, *map(str, arguments)], env=self.environment, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False, **options,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout[-3000:]
        return done.stdout

    def as_user(self, *command, folder, **variables):
        """The command line and the environment to run a command as a user of Docker who is not root."""
        if os.geteuid() == 0:
            socket = self.environment.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
            group = Path(socket).stat().st_gid if Path(socket).exists() else USER  # its members may use Docker
            command = ("setpriv", f"--reuid={USER}", f"--regid={USER}", f"--groups={group}", *command)
        home = Path(folder) / "home"
        home.mkdir(exist_ok=True)
        own(home)
        environment = {
            **self.environment, "HOME": str(home), "DOCKER": self.client, "BASE_IMAGE": self.base,
            "IMAGE": "recipe-test:cpu", "BUILD_OPTIONS": "--network host",
            **{name: str(value) for name, value in variables.items()},
        }  # fmt: skip
        for name in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            if os.environ.get(name):
                environment.setdefault("CA_BUNDLE", os.environ[name])
        return list(map(str, command)), environment


def own(folder):
    """Change the owner of a folder to the user who runs the containers."""
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", f"{USER}:{USER}", folder], check=True)


@contextlib.contextmanager
def running_engine(folder):
    """A running engine, or one started for the block; skips the test if neither works."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "HF_"))}
    for client in ("/usr/bin/docker", "docker"):  # Debian's client includes BuildKit; others need a plugin
        if shutil.which(client) and _is_running(client, environment):
            yield Engine(client, environment)
            return
    if os.geteuid() != 0:
        pytest.skip("no container engine is running, and only root can start one")
    if not shutil.which("dockerd") or not Path("/usr/bin/docker").exists():
        pytest.skip("no container engine: apt-get install docker.io debootstrap docker-compose")
    socket = f"unix://{folder}/docker.sock"
    environment["DOCKER_HOST"] = socket
    with (folder / "dockerd.log").open("w") as log:
        daemon = subprocess.Popen(
            ["dockerd", "--data-root", folder / "data", "--exec-root", folder / "exec", "-H", socket,
             "-p", folder / "pid"], stdout=log, stderr=log,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 60
            while not _is_running("/usr/bin/docker", environment):
                if daemon.poll() is not None or time.monotonic() > deadline:
                    last = (folder / "dockerd.log").read_text().strip().splitlines()[-1:]
                    pytest.skip(f"a container engine can't be started here: {last}")
                time.sleep(0.5)
            (folder / "docker.sock").chmod(0o666)
            yield Engine("/usr/bin/docker", environment)
        finally:
            daemon.terminate()
            daemon.wait()
            for mount in (folder / "exec/netns").glob("*"):  # the engine does not unmount them
                subprocess.run(["umount", mount], capture_output=True, check=False)
            for name in ("data", "exec"):
                shutil.rmtree(folder / name, ignore_errors=True)


def base_image(engine, folder):
    """The name of a Debian image: built with debootstrap, which needs no image registry, else the pinned image."""
    if not shutil.which("debootstrap") or os.geteuid() != 0:
        [pinned] = re.findall(r"^ARG BASE_IMAGE=(.+)$", (ROOT / "docker/Dockerfile").read_text(), flags=re.MULTILINE)
        if not engine.docker("images", "-q", pinned) and "Error" in engine.docker("pull", pinned, check=False):
            pytest.skip(f"no base image: {pinned} can't be pulled, and debootstrap needs root")
        return pinned
    name, root = "local/debian:bookworm", folder / "debian"
    if not engine.docker("images", "-q", name):
        result = subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", root],
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stdout[-2000:]
        for archive in (root / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        with subprocess.Popen(["tar", "-C", root, "--numeric-owner", "-c", "."], stdout=subprocess.PIPE) as tar:
            engine.docker("import", "-", name, stdin=tar.stdout)
        shutil.rmtree(root)
    return name


def _is_running(client, environment):
    done = subprocess.run([client, "version"], env=environment, capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture(scope="session")
def place():
    """A folder that other users may enter, unlike pytest's, with a git config that trusts repositories of any owner."""
    folder = Path(tempfile.mkdtemp(prefix="recipe-docker-"))
    folder.chmod(0o711)
    (folder / "gitconfig").write_text("[safe]\n\tdirectory = *\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("GIT_CONFIG_GLOBAL", str(folder / "gitconfig"))
    yield folder
    patch.undo()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def engine(place):
    with running_engine(place) as running:
        running.base = base_image(running, place)
        yield running


@pytest.fixture(scope="session")
def wheel(place):
    """torch's CPU wheel, downloaded with pip."""
    [pinned] = [
        line for line in (ROOT / "requirements/cpu.lock").read_text().splitlines() if line.startswith("torch==")
    ]
    torch = pinned.split()[0]
    folder = place / "wheels"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, torch], check=True, text=True
    )
    [file] = folder.glob("torch-*.whl")
    return file


def clone(folder, wheel, umask=0o022):
    """A fresh repository with the current files in one commit, including dvc.lock."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    before = os.umask(umask)
    try:
        for name in filter(None, files.split("\0")):
            if (ROOT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / name).is_symlink():
                    (folder / name).symlink_to((ROOT / name).readlink())
                else:
                    shutil.copyfile(ROOT / name, folder / name)
                    if os.access(ROOT / name, os.X_OK):
                        (folder / name).chmod(0o777 & ~umask)
        os.link(wheel, folder / "docker/wheels" / wheel.name)
    finally:
        os.umask(before)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    dates = {
        "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    }  # the same commit every time
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *command], cwd=folder, check=True, env={**os.environ, **dates})
    own(folder)
    return folder


@pytest.fixture(scope="session")
def cloned(engine, place, wheel):
    return clone(place / "clone", wheel)


def make(engine, folder, *arguments, check=True, **variables):
    command, environment = engine.as_user("make", *arguments, folder=folder.parent, **variables)
    done = subprocess.run(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert not check or done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def image(engine, cloned, place):
    """Build the CPU image with `make docker-build`, with a token in the environment and in the secret file."""
    certificates = engine.as_user("true", folder=place)[1].get("CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    (place / "ca.pem").write_text(f"{Path(certificates).read_text()}\n# {SECRET}\n")
    (cloned / "docker/.env").write_text(f"POSTGRES_PASSWORD={SECRET}\n")  # as `make services-up` writes it
    output = make(engine, cloned, "docker-build", LOCK="cpu", HF_TOKEN=SECRET, CA_BUNDLE=place / "ca.pem")
    (cloned / "docker/.env").unlink()
    size = int(engine.docker("image", "inspect", "--format", "{{.Size}}", "recipe-test:cpu"))
    print(f"\nrecipe-test:cpu has {size / 1e9:.2f} GB")
    return output
