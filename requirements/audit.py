"""Looks up known vulnerabilities of all packages in the lock files, in the OSV database.

    python requirements/audit.py                                        # exit code 1 if there are any
    python requirements/audit.py --osv-url http://127.0.0.1:8000/v1/query    # another service with OSV's interface

pip-audit's library reads the lock files and asks the service about each package. Its command line is not used, because
it neither names the lock file of a package nor reports an unreachable service in one line. It also asks about
`2.13.0+cpu`, although the database lists only public versions such as `2.13.0`.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import requests
from packaging.version import Version
from pip_audit._dependency_source import RequirementSource
from pip_audit._service import OsvService, ResolvedDependency, ServiceError, VulnerabilityResult

FOLDER = Path(__file__).resolve().parent
TIMEOUT = 15  # seconds
FOUND, UNREACHABLE = 1, 4  # exit codes


def locked_packages(locks: list[Path]) -> dict[ResolvedDependency, list[str]]:
    """Return the packages of the lock files, and for each package the names of the files that contain it."""
    packages: dict[ResolvedDependency, list[str]] = {}
    for lock in locks:
        for package in RequirementSource([lock], require_hashes=True, disable_pip=True).collect():
            assert isinstance(package, ResolvedDependency), package
            public = replace(package, version=Version(package.version.public))
            packages.setdefault(public, []).append(lock.name)
    return packages


def describe(package: ResolvedDependency, locks: list[str], vulnerability: VulnerabilityResult) -> str:
    """Return a line that says which package has the vulnerability, and which versions fix it."""
    ids = ", ".join([vulnerability.id, *sorted(vulnerability.aliases)])
    fixed = " or ".join(map(str, vulnerability.fix_versions))
    return f"{package.name} {package.version} ({', '.join(locks)}): {ids}; " + (
        f"fixed in {fixed}" if fixed else "no version fixes it"
    )


def audit(locks: list[Path], service: OsvService) -> tuple[int, list[str]]:
    """Return the number of packages, and a line for each known vulnerability."""
    packages = locked_packages(locks)
    lines = []
    for package in sorted(packages, key=lambda package: (package.canonical_name, package.version)):
        _, vulnerabilities = service.query(package)
        lines += [describe(package, packages[package], vulnerability) for vulnerability in vulnerabilities]
    return len(packages), lines


def main() -> int:
    """Print the vulnerabilities, or that there are none, and return the exit code."""
    parser = argparse.ArgumentParser(description="Look up known vulnerabilities of the packages in the lock files.")
    parser.add_argument("--osv-url", default=OsvService.DEFAULT_OSV_URL, help="default: %(default)s")
    parser.add_argument("locks", nargs="*", type=Path, help="default: all lock files in requirements/")
    options = parser.parse_args()
    locks = options.locks or sorted(FOLDER.glob("*.lock"))
    try:
        number, lines = audit(locks, OsvService(timeout=TIMEOUT, osv_url=options.osv_url))
    except (requests.RequestException, ServiceError) as error:
        reason = error.__cause__ or error
        print(
            f"error: {options.osv_url} could not be asked about vulnerabilities ({type(reason).__name__}), so nothing "
            "was checked. Check the network connection, or name another service with `make audit OSV=URL`.",
            file=sys.stderr,
        )
        return UNREACHABLE
    print("\n".join(lines) or f"no known vulnerabilities in {number} packages of {len(locks)} lock files")
    return FOUND if lines else 0


if __name__ == "__main__":
    sys.exit(main())
