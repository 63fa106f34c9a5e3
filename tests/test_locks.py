"""Installation only with the hashes in the lock files, and the search for known vulnerabilities (`make audit`)."""

import json
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT
from packaging.utils import canonicalize_name
from runs import ENVIRONMENT

from recipe.core.io import sha256_file

WHEEL = "harmless-1.0-py3-none-any.whl"


@pytest.fixture
def wheels(tmp_path):
    """A folder with a package's wheel, and the lock line with the wheel's hash."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.writestr("harmless.py", "")
        archive.writestr("harmless-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: harmless\nVersion: 1.0\n")
        archive.writestr(
            "harmless-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("harmless-1.0.dist-info/RECORD", "")
    return folder, f"harmless==1.0 --hash=sha256:{sha256_file(folder / WHEEL)}\n"


def altered(line):
    """The lock line with another last digit of the hash."""
    return line.strip()[:-1] + ("0" if line.strip()[-1] != "0" else "1") + "\n"


def locks_in(folder, lock):
    """Lock files for requirements/install and docker/install that contain only `lock`."""
    (folder / "requirements").mkdir(parents=True)
    for name in ("cpu", "tools"):
        (folder / f"requirements/{name}.lock").write_text(lock if name == "cpu" else "")


def install_on_host(folder, wheels):
    """Run requirements/install. It finds uv in its place, so that nothing is downloaded."""
    shutil.copy(ROOT / "requirements/install", folder / "requirements/install")
    (folder / ".venv/bootstrap").parent.mkdir()
    (folder / ".venv/bootstrap").symlink_to(ROOT / ".venv/bootstrap")
    command = ["requirements/install", "cpu", ".venv"]
    return folder / ".venv/lib/python3.11/site-packages/harmless.py", command, {"PIP_FIND_LINKS": str(wheels)}


def install_in_image(folder, wheels):
    """Run docker/install, with other folders than in an image."""
    text = (ROOT / "docker/install").read_text()
    text = text.replace("/build", str(folder)).replace("/opt/recipe", str(folder / "opt"))
    (folder / "install").write_text(text)
    shutil.copytree(wheels, folder / "wheels")
    command = ["sh", "install", "cpu", "tools"]
    (folder / "wheels/torch-0.whl").touch()  # it is asked for by name only, so that no index is needed
    return folder / "opt/lib/python3.11/site-packages/harmless.py", command, {}


@pytest.mark.slow
@pytest.mark.parametrize("prepare_install", [install_on_host, install_in_image])
def test_a_package_whose_hash_differs_is_not_installed(wheels, tmp_path, prepare_install):
    folder, line = wheels
    for name, lock in (("right", line), ("altered", altered(line))):
        locks_in(tmp_path / name, lock)
        installed, command, variables = prepare_install(tmp_path / name, folder)
        done = subprocess.run(
            command, cwd=tmp_path / name, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            env={**ENVIRONMENT, "PYTHON": sys.executable, "PIP_NO_INDEX": "1", "UV_OFFLINE": "1", **variables},
        )  # fmt: skip
        assert installed.exists() == (name == "right"), done.stdout
        if name == "altered":
            assert done.returncode != 0 and re.search(r"(?i)hash mismatch|do not match the hashes", done.stdout), (
                done.stdout
            )


def test_every_package_is_locked_with_hashes_and_installed_with_them():
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    for lock in locks:
        lines = [
            line for line in lock.read_text().replace("\\\n", "").splitlines() if line and not line.startswith("#")
        ]
        requirements = [line for line in lines if not line.lstrip().startswith("#")]
        assert len(requirements) >= 1 and all("==" in line and "--hash=sha256:" in line for line in requirements), lock
    assert any(line.startswith("pip==") for line in (ROOT / "requirements/tools.lock").read_text().splitlines())
    installers = [
        "Makefile",
        "docker/Dockerfile",
        "docker/install",
        "requirements/install",
        "recipe/evaluate/lm_eval.py",
    ]
    commands = []
    for file in installers:
        text = (ROOT / file).read_text().replace("\\\n", " ")
        commands += [line.strip() for line in text.splitlines() if re.search(r"\bpip install |\bpipx |--seed", line)]
    without_hashes = [line for line in commands if "--require-hashes" not in line]
    # The package itself, from this checkout, built with the locked setuptools.
    assert without_hashes == ['uv pip install -q --python "$VENV/bin/python" --no-deps --no-build-isolation -e .']
    assert len(commands) == 6


# Known vulnerabilities


@pytest.fixture
def osv():
    """A stand-in for the OSV database, with one known vulnerability. `requests` contains what was asked."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((query["package"]["name"], query["version"], query["package"]["ecosystem"]))
            answer = json.dumps(VULNERABLE if requests[-1] == ("harmless", "1.0", "PyPI") else {}).encode()
            self.send_response(500 if query["package"]["name"] == "broken" else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query", requests
        server.shutdown()


# The shape of https://api.osv.dev/v1/query, https://ossf.github.io/osv-schema
VULNERABLE = {
    "vulns": [{
        "id": "PYSEC-2026-1", "schema_version": "1.7.0", "aliases": ["CVE-2026-0001", "GHSA-aaaa-bbbb-cccc"],
        "modified": "2026-11-01T00:00:00Z", "published": "2026-10-01T00:00:00Z", "details": "It is not harmless.",
        "affected": [{
            "package": {"name": "harmless", "ecosystem": "PyPI", "purl": "pkg:pypi/harmless"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.0.1"}]}],
            "versions": ["1.0"],
        }],
    }],
}  # fmt: skip


def audit(*arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "requirements/audit.py", *map(str, arguments)], text=True, capture_output=True,
        env={**ENVIRONMENT, "XDG_CACHE_HOME": "/nowhere", "no_proxy": "127.0.0.1"}, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def lock_of(folder, name, *packages):
    path = folder / name
    path.write_text("".join(f"{package} --hash=sha256:{'a' * 64}\n" for package in packages))
    return path


def test_a_known_vulnerability_is_reported_with_its_fix(tmp_path, osv):
    url, requests = osv
    locks = (
        lock_of(tmp_path, "a.lock", "harmless==1.0", "torch==2.13.0+cpu"),
        lock_of(tmp_path, "b.lock", "harmless==1.0"),
    )
    code, out, err = audit("--osv-url", url, *locks)
    assert (code, out, err) == (
        1, "harmless 1.0 (a.lock, b.lock): PYSEC-2026-1, CVE-2026-0001, GHSA-aaaa-bbbb-cccc; fixed in 1.0.1\n", ""
    )  # fmt: skip
    assert requests == [("harmless", "1.0", "PyPI"), ("torch", "2.13.0", "PyPI")]


def test_all_packages_of_all_lock_files_are_looked_up(osv):
    url, requests = osv
    done = subprocess.run(
        ["make", "-s", "-o", "env", "audit", f"OSV={url}"], cwd=ROOT, text=True, capture_output=True, env=ENVIRONMENT,
        check=False,
    )  # fmt: skip
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    pinned = {
        (canonicalize_name(name), version)
        for lock in locks
        for name, version in re.findall(r"^([\w.-]+)==([\w.!]+)", lock.read_text(), flags=re.MULTILINE)
    }
    assert {(name, version) for name, version, _ in requests} == pinned and len(requests) == len(pinned) > 200
    assert (done.returncode, done.stdout) == (
        0, f"no known vulnerabilities in {len(pinned)} packages of {len(locks)} lock files\n"
    )  # fmt: skip


@pytest.mark.parametrize("package", ["harmless", "broken"])
def test_an_audit_without_an_answer_fails_in_one_line(tmp_path, osv, package):
    url = osv[0] if package == "broken" else "http://127.0.0.1:9/v1/query"
    code, out, err = audit("--osv-url", url, lock_of(tmp_path, "a.lock", f"{package}==1.0"))
    assert code == 4 and not out and err.count("\n") == 1
    assert err.startswith(f"error: {url} could not be asked about vulnerabilities (") and "nothing was checked" in err
