"""From a registered version back to its sources: the chain is whole, and each broken link is named."""

import json
import os
import re
import shutil
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, alpaca, edit, toy_rows, write_jsonl
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from runs import ENVIRONMENT, mlflow_server, run

from recipe.core.errors import DataError, ParamsError
from recipe.core.io import sha256_file
from recipe.core.paths import read_paths

RECIPE = ["python", "-P", "recipe/__main__.py"]  # the code of the clone, as DVC runs it
ADDRESS = "models:/recipe-demo@champion"
SECRET = "hf_planted_secret_0123456789"
PASSWORD = "planted password"


def write_keys(folder, name, password=None):
    """Create a key pair in two PEM files: NAME.key and NAME.pub."""
    key = ec.generate_private_key(ec.SECP256R1())
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def recipe(folder, *command, code=0, **environment):
    """Run a command of the clone's own code, and return what it printed."""
    done = subprocess.run(
        [*RECIPE, *command], cwd=folder, env={**ENVIRONMENT, **environment}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    return done.stdout


def commit_all(folder):
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "--allow-empty", "-m", "The recorded run")


def copy_of(finished, folder):
    """A copy of a finished demo in which everything is committed."""
    ignored = {".venv", "mlflow", ".recipe", "tmp"}
    shutil.copytree(finished, folder, symlinks=True, ignore=lambda _, names: ignored & set(names))
    commit_all(folder)
    return folder


class Traced:
    """A copy of the finished demo whose adapter is registered and signed on a real MLflow server."""

    def __init__(self, folder, uri, store, public_key):
        self.folder, self.uri, self.store, self.public_key = folder, uri, store, public_key

    def provenance(self, public_key=None):
        """Check the chain; returns whether it is whole, and {link: what was printed about it}."""
        from recipe.cli.provenance import provenance

        lines = []
        whole = provenance(ADDRESS, public_key or self.public_key, lines.append, rebuild=False)
        return whole, links(lines)

    @property
    def artifacts(self):
        """The folder of the version's files in the server's store."""
        [path] = self.store.glob("**/artifacts/provenance")
        return path.parent

    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(self.uri)


def links(lines):
    texts, name = {}, ""
    for line in lines:
        name = line[:11].strip() or name
        texts[name] = f"{texts.get(name, '')} {' '.join(line[11:].split())}".strip()
    return texts


@pytest.fixture(scope="module")
def place(finished, tmp_path_factory):
    place = tmp_path_factory.mktemp("provenance")
    private, public = write_keys(place, "own", PASSWORD)
    folder = copy_of(finished, place / "my demo")
    (place / "store").mkdir()
    with mlflow_server(place / "server.db", place / "store") as uri:
        recipe(
            folder, "register", MLFLOW_TRACKING_URI=uri, HF_TOKEN=SECRET, RECIPE_SIGNING_KEY=str(private),
            RECIPE_SIGNING_KEY_PASSWORD=PASSWORD,
        )  # fmt: skip
        yield Traced(folder, uri, place / "store", public)


@pytest.fixture
def traced(place, monkeypatch):
    monkeypatch.chdir(place.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    return place


@contextmanager
def changed(path, old=None, new=None):
    """Change a file during the block: text, or the last byte."""
    before = path.read_bytes()
    if old is None:
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    else:
        edit(path, old, new)
    try:
        yield
    finally:
        path.write_bytes(before)


@pytest.mark.slow
def test_the_chain_of_a_registered_version_is_whole(traced):
    printed = recipe(
        traced.folder, "provenance", ADDRESS, "--public-key", str(traced.public_key), MLFLOW_TRACKING_URI=traced.uri
    )
    found = links(printed.splitlines())
    names = ["signature", "statement", "run", "adapter", "dvc.lock", "code", "params.yaml", "dataset", "base model"]
    assert all(found[name].startswith("checked") for name in [*names, "lock file"]), printed
    assert found["image"] == "not used"
    assert printed.endswith("No link is broken.\n")
    assert run(traced.folder, "git", "rev-parse", "HEAD").strip() in found["code"]
    without_key = traced.client().get_model_version_by_alias("recipe-demo", "champion").tags
    assert without_key["git_clean"] == "yes" and "cores" in without_key["hardware"]
    assert without_key["params_sha256"] == sha256_file(traced.folder / "params.yaml")


@pytest.mark.slow
def test_the_signature_is_not_checked_without_a_public_key(traced):
    from recipe.cli.provenance import provenance

    lines = []
    assert provenance(ADDRESS, None, lines.append, rebuild=False)
    assert "not reachable here" in links(lines)["signature"] and "--public-key" in links(lines)["signature"]


@pytest.mark.slow
def test_the_statement_and_the_bill_of_materials_are_valid(traced):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator
    from google.protobuf.json_format import Parse
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    text = (traced.artifacts / "provenance" / "statement.json").read_text()
    Statement.copy_from_pb(Parse(text, Message())).validate()
    statement = json.loads(text)
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    predicate = Parse(json.dumps(statement["predicate"]), Provenance())
    materials = {entry.name: entry for entry in predicate.build_definition.resolved_dependencies}
    assert materials.keys() == {"code", "dvc.lock", "params.yaml", "dataset", "base", "lock"}
    assert materials["code"].digest["gitCommit"] == run(traced.folder, "git", "rev-parse", "HEAD").strip()
    adapter = read_paths(traced.folder).adapter
    subjects = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
    assert subjects == {path.name: sha256_file(path) for path in adapter.iterdir()}

    bill = (traced.artifacts / "provenance" / "bom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    components = {component["name"]: component for component in json.loads(bill)["components"]}
    assert components["torch"]["externalReferences"][0]["hashes"][0]["alg"] == "SHA-256"
    assert components["dvc"]["properties"] == [{"name": "recipe:lock", "value": "tools.lock"}]
    weights = {file["name"]: file["hashes"][0]["content"] for file in components["demo-base"]["components"]}
    assert weights["model.safetensors"] == sha256_file(traced.folder / "demo/base/model.safetensors")
    assert {file["name"] for file in components["demo/rows"]["components"]} == {"train.jsonl", "validation.jsonl"}
    broken = json.loads(bill)
    broken["components"][0].pop("name")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


@pytest.mark.slow
def test_the_model_card_says_what_the_adapter_is_for_and_how_to_rebuild_it(traced):
    card = (traced.artifacts / "MODEL_CARD.md").read_text()
    for heading in ("## Intended use", "## How to rebuild", "## Lineage"):
        assert heading in card
    assert "Licenses: base model not stated, data not stated" in card and "| exact match |" in card
    assert f"recipe verify --commit {run(traced.folder, 'git', 'rev-parse', 'HEAD').strip()}" in card
    assert (traced.artifacts / "provenance/params.yaml").read_bytes() == (traced.folder / "params.yaml").read_bytes()


@pytest.mark.slow
def test_no_file_of_the_evidence_and_no_tag_has_a_path_a_host_name_or_a_secret(traced):
    version = traced.client().get_model_version_by_alias("recipe-demo", "champion")
    files = [*(traced.artifacts / "provenance").iterdir(), traced.artifacts / "MODEL_CARD.md"]
    files.append(traced.artifacts.parent / "model.sig")
    texts = [file.read_text() for file in files] + [json.dumps(version.tags)]
    key = (traced.public_key.with_name("own.key")).read_text().splitlines()[1]
    secrets = (SECRET, PASSWORD, key, str(traced.folder), str(traced.store.parent), socket.gethostname(), "/tmp/")
    assert len(texts) == 6
    assert [secret for secret in secrets for text in texts if secret in text] == []


@pytest.mark.slow
def test_registering_again_changes_nothing(traced):
    client, receipt = traced.client(), read_paths(traced.folder).receipt
    before, bytes_before = client.search_model_versions("name = 'recipe-demo'"), receipt.read_bytes()
    signature = (traced.artifacts.parent / "model.sig").read_bytes()
    recipe(traced.folder, "register", MLFLOW_TRACKING_URI=traced.uri)
    (traced.folder / "note.txt").write_text("not committed")
    recipe(traced.folder, "register", MLFLOW_TRACKING_URI=traced.uri)
    (traced.folder / "note.txt").unlink()
    [version] = client.search_model_versions("name = 'recipe-demo'")
    assert int(version.version) == 1 and version.tags == before[0].tags
    assert receipt.read_bytes() == bytes_before
    assert (traced.artifacts.parent / "model.sig").read_bytes() == signature
    assert run(traced.folder, "git", "status", "--porcelain") == ""


FILES = {
    "adapter": ("artifacts/adapter/adapter_model.safetensors", "adapter_model.safetensors in the registered adapter"),
    "code": ("artifacts/recipe/train/stage.py", "the registered code differs from the commit in recipe/train/stage.py"),
    "base model": ("artifacts/tokenizer/tokenizer.json", "the registered tokenizer has a different sha256"),
    "statement": ("artifacts/provenance/bom.cdx.json", "bom.cdx.json is not the file that the provenance statement"),
}


@pytest.mark.slow
@pytest.mark.parametrize("link", FILES)
def test_a_changed_file_in_the_registry_is_named(traced, link):
    path, message = FILES[link]
    with changed(traced.artifacts.parent / path):
        whole, found = traced.provenance()
    assert not whole
    assert found[link].startswith("broken") and message in found[link], found
    expected = {link, "signature"} | ({"dvc.lock"} if link == "adapter" else set())
    assert {name for name, text in found.items() if text.startswith("broken ")} == expected
    assert Path(path).name in found["signature"]


@pytest.mark.slow
def test_an_edited_statement_and_a_missing_one_are_broken(traced):
    with changed(traced.artifacts / "provenance/statement.json", "dvc repro", "dvc commit"):
        whole, found = traced.provenance()
    assert not whole and "is not the one with which the version was registered" in found["statement"]
    with changed(traced.artifacts / "provenance/statement.json", '"subject"', '"subjects"'):
        assert "the provenance statement is not valid" in traced.provenance()[1]["statement"]


LOCAL = {
    "dataset": ("data/raw/train.jsonl", "train.jsonl in data/raw: expected sha256 "),
    "base model": ("demo/base/model.safetensors", "model.safetensors in demo-base: expected sha256 "),
}


@pytest.mark.slow
@pytest.mark.parametrize("link", LOCAL)
def test_a_changed_file_on_this_machine_is_named(traced, link):
    path, message = LOCAL[link]
    with changed(traced.folder / path):
        whole, found = traced.provenance()
    assert not whole and message in found[link]
    assert [name for name, text in found.items() if text.startswith("broken ")] == [link]


@pytest.mark.slow
def test_files_that_are_not_here_are_not_reachable(traced):
    with changed(traced.folder / "data/raw/manifest.json", "c595966d", "00000000"):
        whole, found = traced.provenance()
        assert whole and found["dataset"].endswith("data/raw contains a different dataset")
    moved = traced.folder / "demo" / "base"
    moved.rename(moved.with_name("elsewhere"))
    try:
        whole, found = traced.provenance()
    finally:
        moved.with_name("elsewhere").rename(moved)
    assert whole and found["base model"].endswith("the files of the base model are not here")


@pytest.mark.slow
def test_outside_the_repository_only_the_registry_is_checked(traced, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, found = traced.provenance()
    assert whole
    unreachable = {name for name, text in found.items() if text.startswith("not reachable here")}
    assert unreachable == {"dvc.lock", "code", "params.yaml", "dataset", "base model", "lock file"}
    assert found["adapter"].startswith("checked")


@pytest.fixture
def chain(traced, tmp_path):
    from recipe.provenance.chain import open_chain
    from recipe.tracking.versions import download_version

    version = download_version(ADDRESS, traced.folder, tmp_path)
    opened = open_chain(version, traced.folder, lambda folder: read_paths(Path(os.path.relpath(folder))))
    assert not isinstance(opened, str), opened
    return opened


def problems(chain):
    from recipe.provenance.links import check_links

    return {link.name: link.problems for link in check_links(chain) if link.problems}


@pytest.mark.slow
def test_each_edited_tag_is_named(traced, chain):
    from recipe.provenance.links import LINKS

    assert problems(chain) == {}
    tags = [(link, tag) for link, (_, names) in LINKS.items() for tag in names]
    assert {tag for _, tag in tags} == set(chain.record.tags())
    for link, tag in tags:
        version = replace(chain.version, tags={**chain.version.tags, tag: "edited"})
        [(name, [message])] = problems(replace(chain, version=version)).items()
        assert name == link and f"the tag {tag} is edited, but the provenance statement has " in message
    version = replace(chain.version, tags={**chain.version.tags, "data_sha256.train.jsonl": "edited"})
    assert problems(replace(chain, version=version)).keys() == {"dataset"}
    client, number = traced.client(), chain.version.number  # and once on the server
    before = chain.version.tags["git_commit"]
    client.set_model_version_tag("recipe-demo", number, "git_commit", "0" * 40)
    try:
        whole, found = traced.provenance()
    finally:
        client.set_model_version_tag("recipe-demo", number, "git_commit", before)
    assert not whole and f"the tag git_commit is {'0' * 40}" in found["code"]


@pytest.mark.slow
def test_a_commit_with_other_files_is_named(chain):
    """The record of a version that was registered with another dvc.lock, other params and another lock file."""
    for link, change in (
        ("dvc.lock", "dvc_lock_sha256"), ("params.yaml", "params_sha256"), ("lock file", "lock_sha256")
    ):  # fmt: skip
        record = replace(chain.record, **{change: "0" * 64})
        version = replace(chain.version, tags=chain.version.tags | record.tags())
        [(name, [message])] = problems(replace(chain, record=record, version=version)).items()
        assert name == link and "of the commit has sha256 " in message


@pytest.mark.slow
def test_a_deleted_run_is_a_broken_link(traced, chain):
    client = traced.client()
    client.delete_run(chain.version.run_id)
    try:
        whole, found = traced.provenance()
    finally:
        client.restore_run(chain.version.run_id)
    assert not whole and found["run"].endswith("the run was deleted")
    other = replace(chain.version, run={**chain.version.run, "fingerprint": "0" * 64})
    assert problems(replace(chain, version=other)).keys() == {"run"}


@pytest.mark.slow
def test_a_signature_by_a_different_key_and_a_removed_signature_are_broken(traced, tmp_path):
    _, other = write_keys(tmp_path, "other")
    whole, found = traced.provenance(other)
    assert not whole and found["signature"].endswith("it was made by a different key")
    signature = traced.artifacts.parent / "model.sig"
    before = signature.read_bytes()
    signature.unlink()
    try:
        whole, found = traced.provenance()
    finally:
        signature.write_bytes(before)
    assert not whole and found["signature"].endswith("the version has no signature")
    with changed(signature, '"payload":"', '"payload":"A'):
        whole, found = traced.provenance()
    assert not whole and found["signature"].startswith("broken ")
    with pytest.raises(ParamsError, match=r"--public-key: .* has no usable key"):
        traced.provenance(traced.folder / "params.yaml")


@pytest.mark.long
def test_a_version_registered_from_a_changed_tree_becomes_whole_once_all_is_committed(finished, tmp_path):
    """In the default store, and signed later. Then dvc.lock records another adapter."""
    folder = copy_of(finished, tmp_path / "my demo")
    create = (
        "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub"
    )
    run(tmp_path, "bash", "-c", create)  # as in docs/provenance.md
    private, public = tmp_path / "key.pem", tmp_path / "key.pub"
    run(folder, "git", "rm", "-q", "--cached", "dvc.lock")
    run(folder, "git", "commit", "-q", "-m", "As before the first run")
    recipe(folder, "register")
    text = recipe(folder, "provenance", ADDRESS, code=1)
    found = links(text.splitlines())
    assert "that were not committed" in found["code"] and "has no dvc.lock" in found["dvc.lock"]
    assert text.endswith("broken: 2 links.\n")
    commit_all(folder)
    (folder / "note.txt").write_text("not committed")
    recipe(folder, "register")
    text = recipe(folder, "provenance", ADDRESS, code=1)
    assert "that were not committed" in links(text.splitlines())["code"] and text.endswith("broken: 1 link.\n")
    (folder / "note.txt").unlink()
    recipe(folder, "register")
    text = recipe(folder, "provenance", ADDRESS)
    assert "version 1 of" in text and text.endswith("No link is broken.\n")
    recipe(folder, "register", RECIPE_SIGNING_KEY=str(private))
    text = recipe(folder, "provenance", ADDRESS, "--public-key", str(public))
    assert links(text.splitlines())["signature"].startswith("checked by the key with sha256 ")

    shutil.rmtree(folder / "mlflow")
    lock = folder / "dvc.lock"
    [md5] = set(re.findall(r"models/adapter\n +hash: md5\n +md5: (\w+)\.dir", lock.read_text()))
    lock.write_text(lock.read_text().replace(md5, "0" * 32))
    commit_all(folder)
    recipe(folder, "register")
    text = recipe(folder, "provenance", ADDRESS, code=1)
    assert "records a different adapter than the registered one" in links(text.splitlines())["dvc.lock"]


@pytest.mark.slow
@pytest.mark.long
def test_rebuild_says_whether_the_bytes_are_those_of_the_registry(commit, tiny_base, tmp_path):
    """With a recipe that takes seconds, in presets/."""
    shutil.copytree(tiny_base, tmp_path / "base")
    write_jsonl(tmp_path / "rows" / "train.jsonl", toy_rows(80))
    write_jsonl(tmp_path / "rows" / "validation.jsonl", [alpaca(f"Held {n}", "x y") for n in range(6)])
    repository = tmp_path / "repository"
    run(tmp_path, "git", "clone", "-q", commit, repository)
    recipe(repository, "new", "quick", "--data", "../rows", "--model", "../base")
    folder = repository / "presets" / "quick"
    edit(folder, "max_generations: 450", "max_generations: 2")
    edit(folder, "max_new_tokens: 64", "max_new_tokens: 4")
    run(folder, "dvc", "repro")
    commit_all(repository)
    program = [*RECIPE[:2], "../../recipe/__main__.py"]
    run(folder, *program, "register")
    text = run(folder, *program, "provenance", "models:/quick/1", "--rebuild")
    assert "the adapter has the bytes of the registered one (2 files)" in links(text.splitlines())["rebuild"], text
    assert text.endswith("No link is broken.\n")
    [weights] = repository.glob("mlflow/artifacts/**/adapter/adapter_model.safetensors")
    with changed(weights):
        text = run(folder, *program, "provenance", "models:/quick/1", "--rebuild", check=False)
    assert "adapter_model.safetensors differs: 1 of " in links(text.splitlines())["rebuild"], text


@pytest.mark.long
def test_the_demo_is_rebuilt_from_the_registry(traced):
    text = recipe(traced.folder, "provenance", ADDRESS, "--rebuild", MLFLOW_TRACKING_URI=traced.uri)
    assert "the adapter has the bytes of the registered one (2 files)" in links(text.splitlines())["rebuild"], text


def test_a_bad_address_and_a_missing_version_are_refused(tmp_path, monkeypatch):
    from recipe.core.errors import TrackingError
    from recipe.tracking.versions import download_version

    for address in ("recipe-demo", "models:/recipe-demo", "models:/recipe-demo/champion", "runs:/a/b"):
        with pytest.raises(ParamsError, match="is not a registered version"):
            download_version(address, tmp_path, tmp_path)
    with pytest.raises(TrackingError, match="there is no MLflow store in "):
        download_version("models:/recipe-demo@champion", tmp_path, tmp_path)
    assert not (tmp_path / "mlflow").exists()


def test_a_missing_version_is_named(server, tmp_path):
    from recipe.core.errors import TrackingError
    from recipe.tracking.versions import download_version

    with pytest.raises(TrackingError, match=r"has no models:/nothing@champion: .*MLFLOW_TRACKING_URI selects"):
        download_version("models:/nothing@champion", tmp_path, tmp_path)


def test_a_key_that_cannot_be_used_is_refused(tmp_path):
    from recipe.provenance.signing import read_key

    private, public = write_keys(tmp_path, "own", PASSWORD)
    assert len(read_key(private, PASSWORD).public_sha256) == 64
    for path, password, message in (
        (private, None, "has no usable key"), (private, "wrong", "has no usable key"),
        (public, None, "has no usable key"), (tmp_path / "nothing", None, "can't be read"),
    ):  # fmt: skip
        with pytest.raises(ParamsError, match=f"RECIPE_SIGNING_KEY: .* {message}"):
            read_key(path, password)


def test_absolute_paths_of_sources_are_not_stored(tmp_path):
    from recipe.provenance.evidence import copy_params

    params = tmp_path / "params.yaml"
    params.write_text("data:\n  source: /home/ann/rows.json  # rows\nmodel:\n  source: /home/ann/bases/tiny\n")
    copy_params(params, tmp_path / "copy.yaml")
    assert (tmp_path / "copy.yaml").read_text() == "data:\n  source: rows.json  # rows\nmodel:\n  source: tiny\n"


def test_an_invalid_statement_is_refused():
    from recipe.provenance.statement import PREDICATE_TYPE, STATEMENT_TYPE, check

    subject = [{"name": "a", "digest": {"sha256": "0" * 64}}]
    valid = {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": PREDICATE_TYPE}
    valid["predicate"] = {"buildDefinition": {"buildType": "a"}, "runDetails": {}}
    check(json.dumps(valid))
    for change in (
        {"subject": []}, {"predicateType": "https://example.org"}, {"predicate": {"a": 1}}, {"_type": "a"},
        {"subject": [{"name": "a"}]},
    ):  # fmt: skip
        with pytest.raises(DataError, match="the provenance statement is not valid"):
            check(json.dumps({**valid, **change}))
    with pytest.raises(DataError, match="is not valid"):
        check("not JSON")


def test_make_sbom_writes_a_valid_bill_of_materials(tmp_path):
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    path = tmp_path / "my files" / "sbom.json"
    text = run(ROOT, "make", "-o", "env", "sbom", f"SBOM={path}")
    assert f"bill of materials: {os.path.relpath(path, ROOT)}" in text
    bill = path.read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None
    components = {component["name"]: component for component in json.loads(bill)["components"]}
    locked = (ROOT / "requirements/tools.lock").read_text()
    hashes = {entry["content"] for entry in components["mlflow"]["externalReferences"][0]["hashes"]}
    assert hashes and all(f"--hash=sha256:{value}" in locked for value in hashes)
    run(ROOT, "make", "-o", "env", "sbom", f"SBOM={tmp_path / 'second.json'}")
    assert (tmp_path / "second.json").read_text() == bill


def test_the_version_is_that_of_the_code_that_runs_even_if_it_is_not_installed(monkeypatch):
    """As in the image."""
    import importlib.metadata

    from recipe.cli.provenance import own_version

    installed = importlib.metadata.version("recipe")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: 1 / 0)
    assert own_version() == installed
