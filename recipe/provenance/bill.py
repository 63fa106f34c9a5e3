"""Writes a CycloneDX bill of materials: the installed packages, the base model and the dataset.

    bill_of_materials("recipe", "0.1.0", packages(), locked_hashes([Path("requirements/cpu.lock")]), sources={})

The same environment and sources produce the same text: it contains no time, and the serial number is derived from the
rest.
"""

import json
import re
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from recipe.core.io import json_text
from recipe.provenance.record import Source

PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==(\S+)((?: \\\n +--hash=sha256:[0-9a-f]{64})*)", re.MULTILINE)
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # has the builds with a local version, such as 2.13.0+cpu
TYPES = {"base": ComponentType.MACHINE_LEARNING_MODEL, "dataset": ComponentType.DATA}


@dataclass(frozen=True, order=True)
class Package:
    """An installed package. `license` is an SPDX expression, or an empty string if the package states none."""

    name: str  # normalized, as in lock files
    version: str
    license: str


def packages() -> list[Package]:
    """Return the packages of this environment except the recipe itself, sorted by name."""
    installed: dict[str, Package] = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        stated = distribution.metadata.get_all("License-Expression") or [""]
        installed.setdefault(name, Package(name, distribution.version, stated[0]))
    installed.pop("recipe", None)
    return sorted(installed.values())


def locked_hashes(locks: list[Path]) -> dict[tuple[str, str], tuple[str, list[str]]]:
    """Return {(package, version): (lock file, sha256 of each distribution file)} for all pins in the lock files.

    If several files pin a version, the first file is used.
    """
    pins: dict[tuple[str, str], tuple[str, list[str]]] = {}
    for lock in locks:
        for name, version, hashes in PIN.findall(lock.read_text(encoding="utf-8")):
            pins.setdefault((name, version), (lock.name, re.findall(r"sha256:(\w+)", hashes)))
    return pins


def bill_of_materials(
    name: str,
    version: str,
    installed: list[Package],
    pins: dict[tuple[str, str], tuple[str, list[str]]],
    sources: dict[str, Source],
) -> str:
    """Return a CycloneDX 1.6 document about `name` as JSON. The keys of `sources` are `base` and `dataset`."""
    bom = Bom()
    kind = ComponentType.MACHINE_LEARNING_MODEL if sources else ComponentType.APPLICATION
    root = Component(name=name, version=version, type=kind, bom_ref="root")
    bom.metadata.component = root
    materials = [_package(package, pins.get((package.name, package.version))) for package in installed]
    materials += [_source(category, source) for category, source in sources.items()]
    for material in materials:
        bom.components.add(material)
    bom.register_dependency(root, materials)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"].pop("timestamp")
    document.pop("serialNumber")
    document["serialNumber"] = f"urn:uuid:{uuid5(NAMESPACE_URL, json_text(document))}"
    return json_text(document)


def _package(package: Package, pin: tuple[str, list[str]] | None) -> Component:
    """Return the component of a package. The hashes are those of all files that the lock file allows."""
    url = f"https://pypi.org/project/{package.name}/{package.version}/"
    if "+" in package.version:
        url = f"{PYTORCH_INDEX}/{package.name}/"
    lock, hashes = pin or ("", [])
    reference = ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=XsUri(url), hashes=map(_sha256, hashes))
    purl = PackageURL("pypi", name=package.name, version=package.version)
    return Component(
        name=package.name,
        version=package.version,
        purl=purl,
        bom_ref=purl.to_string(),
        licenses=_license(package.license),
        external_references=[reference],
        properties=[Property(name="recipe:lock", value=lock)] if lock else [],
    )


def _source(category: str, source: Source) -> Component:
    """Return the component of the base model or the dataset, which contains a component for each file."""
    owner, _, name = source.name.rpartition("/")
    purl = PackageURL("huggingface", owner, name, source.revision) if source.hub and category == "base" else None
    return Component(
        name=source.name,
        version=source.revision or f"sha256:{source.sha256}",
        type=TYPES[category],
        bom_ref=category,
        purl=purl,
        licenses=_license(source.license or ""),
        properties=[Property(name="recipe:sha256", value=source.sha256)],
        components=[
            Component(name=file, type=ComponentType.FILE, bom_ref=f"{category}/{file}", hashes=[_sha256(sha256)])
            for file, sha256 in source.files.items()
        ],
    )


def _license(text: str) -> list[License]:
    return [LicenseFactory().make_from_string(text)] if text else []


def _sha256(value: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=value)
