"""Converts a record to an in-toto statement with SLSA provenance, and back.

The subjects are the adapter's files. The resolved dependencies are the sources: code, dvc.lock, params.yaml, dataset,
base model, lock file and image. The byproducts are the other files that are stored with the registered version.
"""

import json
from pathlib import Path
from typing import Any

from recipe.core.errors import DataError
from recipe.core.format import first_line
from recipe.core.io import json_text
from recipe.provenance.record import NONE, Record, Source

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:recipe:dvc-repro:v1"  # described in docs/provenance.md


def statement_text(record: Record, byproducts: dict[str, str], version: str) -> str:
    """Return the statement as JSON. `byproducts` maps names of files to sha256, and `version` is the recipe's."""
    dependencies = [
        _descriptor("dvc.lock", record.dvc_lock_sha256, without="register"),
        _descriptor("params.yaml", record.params_sha256),
        _source("dataset", record.data),
        _source("base", record.base, tokenizer_sha256=record.tokenizer_sha256),
        _descriptor("lock", record.lock_sha256, file=record.lock),
    ]
    if record.commit != NONE:
        code = {"name": "code", "digest": {"gitCommit": record.commit}, "annotations": {"clean": record.clean}}
        dependencies.insert(0, code)
    if record.image != NONE:
        dependencies.append(_descriptor("image", record.image.removeprefix("sha256:")))
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in record.adapter.items()],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe_folder": record.folder, "command": "dvc repro"},
                "internalParameters": {"fingerprint": record.fingerprint, "hardware": record.hardware},
                "resolvedDependencies": dependencies,
            },
            "runDetails": {
                "builder": {"id": "urn:recipe", "version": {"recipe": version}},
                "byproducts": [_descriptor(name, sha256) for name, sha256 in byproducts.items()],
            },
        },
    }
    text = json_text(statement)
    check(text)
    return text


def check(text: str) -> None:
    """Raise DataError if a text is not a valid in-toto statement with SLSA provenance."""
    from google.protobuf.json_format import Parse, ParseError
    from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
    from in_toto_attestation.v1.statement import Statement
    from in_toto_attestation.v1.statement_pb2 import Statement as Message

    try:
        Statement.copy_from_pb(Parse(text, Message())).validate()
        document = json.loads(text)
        if document["predicateType"] != PREDICATE_TYPE:
            raise ValueError(f"its predicate type is {document['predicateType']}, not {PREDICATE_TYPE}")
        Parse(json.dumps(document["predicate"]), Provenance())
    except (ParseError, ValueError) as error:
        raise DataError(f"the provenance statement is not valid: {first_line(error)}.") from None


def read_statement(path: Path) -> tuple[Record, dict[str, str]]:
    """Return the record in a statement, and the sha256 of each byproduct. Raises DataError if it is invalid."""
    text = path.read_text(encoding="utf-8", errors="replace")
    check(text)
    document = json.loads(text)
    try:
        build, run = document["predicate"]["buildDefinition"], document["predicate"]["runDetails"]
        found = {entry["name"]: entry for entry in build["resolvedDependencies"]}
        digest = {name: entry["digest"].get("sha256", NONE) for name, entry in found.items()}
        record = Record(
            adapter={entry["name"]: entry["digest"]["sha256"] for entry in document["subject"]},
            commit=found["code"]["digest"]["gitCommit"] if "code" in found else NONE,
            clean="code" in found and bool(found["code"]["annotations"]["clean"]),
            folder=build["externalParameters"]["recipe_folder"],
            dvc_lock_sha256=digest["dvc.lock"],
            params_sha256=digest["params.yaml"],
            data=_parse_source(found["dataset"]),
            base=_parse_source(found["base"]),
            tokenizer_sha256=found["base"]["annotations"]["tokenizer_sha256"],
            lock=found["lock"]["annotations"]["file"],
            lock_sha256=digest["lock"],
            image=f"sha256:{digest['image']}" if "image" in found else NONE,
            hardware=build["internalParameters"]["hardware"],
            fingerprint=build["internalParameters"]["fingerprint"],
        )
        return record, {entry["name"]: entry["digest"]["sha256"] for entry in run["byproducts"]}
    except KeyError as error:
        raise DataError(f"the provenance statement has no {error.args[0]}.") from None


def _descriptor(name: str, sha256: str, **annotations: Any) -> dict[str, Any]:
    """Return an in-toto resource descriptor."""
    descriptor: dict[str, Any] = {"name": name, "digest": {"sha256": sha256}}
    return descriptor | ({"annotations": annotations} if annotations else {})


def _source(name: str, source: Source, **annotations: Any) -> dict[str, Any]:
    about = {"id": source.name, "revision": source.revision, "license": source.license, "hub": source.hub}
    return _descriptor(name, source.sha256, **about, files=source.files, **annotations)


def _parse_source(entry: dict[str, Any]) -> Source:
    about = entry["annotations"]
    return Source(
        about["id"], about["revision"], about["license"], entry["digest"]["sha256"], about["files"], about["hub"]
    )
