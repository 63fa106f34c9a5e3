"""Implements `recipe export`: finds the adapter, exports it, writes the report, and logs the comparison to MLflow."""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipe.cli import context
from recipe.cli.context import HERE
from recipe.cli.trained import here, registered
from recipe.core.disk import disk_space
from recipe.core.errors import ParamsError, TrackingError
from recipe.core.format import format_bytes
from recipe.core.io import file_lock, read_json, sha256_file, write_json
from recipe.core.paths import repository

Say = Callable[[str], None]
GGUF_PRECISIONS = ("q8_0", "float32", "bfloat16", "q6_k", "q5_k_m", "q4_k_m")
# The first one is the default.
PRECISIONS = {
    "merged": ("float32", "bfloat16"), "gguf": GGUF_PRECISIONS, "ollama": GGUF_PRECISIONS,
    "vllm": ("bfloat16",), "mlflow": ("float32",),
}  # fmt: skip
# Factors of the base model's size, for the disk space that an export needs.
FACTOR = {"merged": 2, "gguf": 4, "ollama": 4, "vllm": 1, "mlflow": 0}


def export_model(
    version: str | None, form: str, dtype: str | None, out: Path | None, tolerance: float | None, say: Say
) -> None:
    """Export the adapter of this recipe folder, or a registered version.

    Raises TrainingError if the exported model differs from the adapter by more than the limits.
    """
    from recipe.export.report import summary, write_report

    if tolerance is not None and form in ("bundle", "vllm"):
        raise ParamsError(f"--tolerance: {form} contains the trained files themselves, so there is nothing to accept.")
    if form == "bundle":
        _export_bundle(version, dtype, out, say)
        return
    precision = dtype or PRECISIONS[form][0]
    if precision not in PRECISIONS[form]:
        raise ParamsError(f"--dtype: {form} can have the precisions {', '.join(PRECISIONS[form])}, not {precision}.")
    paths, folder = context.paths(), out or HERE / "exports" / f"{form}-{precision}"
    _refuse_other_folders(folder)
    paths.local.mkdir(exist_ok=True)
    with file_lock(paths.local / "export.lock", "an export"), tempfile.TemporaryDirectory(dir=paths.local) as place:
        scratch = Path(place)
        trained, name, run_id = registered(version, scratch) if version else here(paths)
        # A copy, because another training may replace the adapter meanwhile.
        adapter = scratch / "trained-adapter"
        shutil.copytree(trained.adapter, adapter)
        trained = replace(trained, adapter=adapter)
        needed = FACTOR[form] * sum(path.stat().st_size for path in trained.base_files())
        with disk_space(paths.folder, needed, "The export"):
            if form in ("vllm", "mlflow"):
                _write_for_server(form, precision, version, trained, folder, scratch, say)
                return
            export = _write(form, precision, name, trained, folder, scratch, tolerance, say)
        record = {
            "form": form,
            "precision": precision,
            "bytes": sum(path.stat().st_size for path in folder.iterdir()),
            "adapter_sha256": trained.adapter_sha256,
            "limits": export.limits.text(),
            "kept": export.weights,
            "parities": {weights: parity.as_json() for weights, parity in export.parities.items()},
            "notes": list(export.notes),
        }
    if tolerance is not None:
        _mark(folder, tolerance)
    report = paths.analysis.parent / "export"
    write_report(report, record)
    say(summary(record))
    say(_log(run_id, report))
    say(f"exported model: {os.path.relpath(folder)} ({format_bytes(record['bytes'])})")
    if form == "ollama":
        say(f"next: ollama create {name} -f {os.path.relpath(folder / 'Modelfile')} && ollama run {name}")
    say(f"report: {os.path.relpath(report / 'index.html')}")


def exported(version: str | None, form: str, dtype: str | None, say: Say) -> tuple[Path, str]:
    """Return the folder with an export of the adapter, which is written if there is none, and the model's name."""
    from recipe.serve.check import MARKER

    folder = HERE / "exports" / f"{form}-{dtype or PRECISIONS[form][0]}"
    with tempfile.TemporaryDirectory() as place:
        trained, name, _ = registered(version, Path(place), with_rows=False) if version else here(context.paths())
        sha256 = trained.adapter_sha256
    if form == "mlflow" or not _can_be_reused(folder / MARKER, sha256):
        export_model(version, form, dtype, None, None, say)
    return folder, name


def _mark(folder: Path, tolerance: float) -> None:
    """Note in an export that it was accepted with a tolerance."""
    from recipe.serve.check import MARKER

    write_json(folder / MARKER, {**read_json(folder / MARKER), "tolerance": tolerance})


def _can_be_reused(marker: Path, adapter_sha256: str) -> bool:
    """Return whether an export is of this adapter, within the usual limits, and was not written by an older version."""
    if not marker.is_file():
        return False
    facts = read_json(marker)
    is_current = {"adapter_sha256", "accepts", "check", "quantization"} <= facts.keys()
    return is_current and facts["adapter_sha256"] == adapter_sha256 and "tolerance" not in facts


def _refuse_other_folders(folder: Path) -> None:
    from recipe.serve.check import MARKER

    if folder.is_symlink():
        raise ParamsError(f"--out: {folder} is a symbolic link, which an export can't replace. Name its target.")
    if folder.exists() and not (folder / MARKER).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise ParamsError(f"--out: {folder} is not an export, but an export would replace it. Name another folder.")


def _export_bundle(version: str | None, dtype: str | None, out: Path | None, say: Say) -> None:
    """Write a bundle. Raises ParamsError if no registered version is named: a bundle contains its code and card."""
    from recipe.export.bundle import export_bundle

    if version is None:
        raise ParamsError("--to bundle: name a registered version, such as models:/recipe-demo@champion.")
    if dtype is not None:
        raise ParamsError("--dtype: a bundle contains the base model and the adapter as they were trained.")
    paths, folder = context.paths(), out or HERE / "exports" / "bundle"
    _refuse_other_folders(folder)
    paths.local.mkdir(exist_ok=True)
    with file_lock(paths.local / "export.lock", "an export"), tempfile.TemporaryDirectory(dir=paths.local) as place:
        trained, name, _ = registered(version, Path(place))
        lock = _lock_of(trained.adapter.parent, version)
        needed = 3 * sum(path.stat().st_size for path in trained.base_files())
        with disk_space(paths.folder, needed, "The export"):
            tar = export_bundle(trained, trained.adapter.parent, lock, folder, name, Path(place), say)
    say(f"exported: {os.path.relpath(tar)} ({format_bytes(tar.stat().st_size)}), sha256 {sha256_file(tar)}")
    say(f"next: tar -xf {tar.name} on the other machine; {name}/README.md says what to do there")


def _lock_of(artifacts: Path, version: str) -> Path:
    """Return the lock file with which a version was trained. Raises ParamsError if this commit does not contain it."""
    from recipe.core.environment import LOCKS
    from recipe.provenance.statement import read_statement

    record = read_statement(artifacts / "provenance" / "statement.json")[0]
    found = [path for name in LOCKS if (path := repository(HERE) / "requirements" / name).is_file()]
    lock = next((path for path in found if sha256_file(path) == record.lock_sha256), None)
    if lock is None:
        raise ParamsError(
            f"--to bundle: {version} was trained with packages of another lock file ({record.lock}, sha256 "
            f"{record.lock_sha256[:16]}...). Export it from the commit with that file: git checkout {record.commit}"
        )
    return lock


def _write_for_server(
    form: str, precision: str, version: str | None, trained: Any, folder: Path, scratch: Path, say: Say
) -> None:
    """Write the folder from which an engine is started that reads the trained files themselves."""
    from recipe.export.deployed import export_for_mlflow, export_for_vllm

    if form == "vllm":
        export_for_vllm(trained, folder, precision, scratch, say)
    else:
        from recipe.tracking.versions import find_version

        assert version
        _, entry = find_version(version, repository(HERE))
        export_for_mlflow(trained, folder, f"models:/{entry.name}/{entry.version}", scratch, say)
    say(f"written: {os.path.relpath(folder)}. A server that uses it is checked when it starts.")


def _write(
    form: str, precision: Any, name: str, trained: Any, folder: Path, scratch: Path, tolerance: float | None, say: Say
) -> Any:
    if form == "merged":
        from recipe.export.merged import export_merged

        return export_merged(trained, folder, precision, scratch, say, tolerance)
    from recipe.export.gguf import export_gguf, export_ollama, find_quantize
    from recipe.export.llama import install

    find_quantize(precision)  # before llama.cpp is installed
    llama = install(repository(HERE) / ".recipe", say)
    export = export_gguf if form == "gguf" else export_ollama
    return export(trained, folder, precision, name, llama, scratch, say, tolerance)


def _log(run_id: Callable[[], str | None], report: Path) -> str:
    """Log the report to the MLflow run, and return a line that says where it is or why it is nowhere."""
    from recipe.tracking.server import Server
    from recipe.tracking.versions import log_folder

    try:
        found = run_id()
        if found is None:
            return "note: MLflow has no run of this adapter, so the comparison was not logged."
        log_folder(Server(repository(HERE)), found, report, "export")
    except TrackingError as error:
        return f"note: the comparison was not logged: {error}"
    return "MLflow: the comparison is among the artifacts of the run, in export/"
