"""Signs the files of a registered version with model-signing, and checks such a signature.

The key is an elliptic-curve key in a PEM file. The signature covers every file of the version, also the code.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from model_signing import hashing, signing, verifying

from recipe.core.errors import ParamsError
from recipe.core.format import first_line
from recipe.core.io import sha256_bytes

SIGNATURE = "model.sig"
UNSIGNED = "registered_model_meta"  # MLflow adds this file to a download
KEY, PASSWORD = "RECIPE_SIGNING_KEY", "RECIPE_SIGNING_KEY_PASSWORD"


@dataclass(frozen=True)
class Key:
    """A private key in a file. `public_sha256` identifies it: the sha256 of the public key in PEM format."""

    path: Path
    password: bytes | None = field(repr=False)
    public_sha256: str


def read_key(path: Path, password: str | None) -> Key:
    """Return the key in a file. Raises ParamsError if the file has no usable key, or the password is wrong."""
    secret = password.encode() if password else None
    with _usable(KEY, path):
        signing.Config().use_elliptic_key_signer(private_key=path, password=secret)  # type: ignore[arg-type]
        public = load_pem_private_key(path.read_bytes(), secret).public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return Key(path, secret, sha256_bytes(pem))


def sign(folder: Path, key: Key, signature: Path) -> None:
    """Sign all files in a folder, and write the signature to a file."""
    # cryptography expects bytes; model-signing only passes the password on.
    config = signing.Config().use_elliptic_key_signer(private_key=key.path, password=key.password)  # type: ignore[arg-type]
    config.set_hashing_config(_hashing(folder)).sign(folder, signature)


def signature_problem(folder: Path, public_key: Path) -> str | None:
    """Return what is wrong with the signature of a folder, or None if the key signed exactly these files.

    Raises ParamsError if `public_key` is not the file of a public key.
    """
    with _usable("--public-key", public_key):
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    try:
        config.set_hashing_config(_hashing(folder)).verify(folder, folder / SIGNATURE)
    except InvalidSignature:
        return "it was made by a different key"
    except (ValueError, KeyError) as error:
        return "it was made by a different key" if "Key mismatch" in str(error) else first_line(error)
    return None


def _hashing(folder: Path) -> hashing.Config:
    return hashing.Config().set_ignored_paths(paths=[folder / SIGNATURE, folder / UNSIGNED], ignore_git_paths=False)


@contextmanager
def _usable(setting: str, path: Path) -> Iterator[None]:
    """Convert the errors that reading a key can raise to a ParamsError."""
    try:
        yield
    except OSError as error:
        raise ParamsError(f"{setting}: {path} can't be read ({error.strerror}).") from None
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
        raise ParamsError(
            f"{setting}: {path} has no usable key ({first_line(error)}). The file must contain an elliptic-curve key "
            f"in PEM format. If a private key is encrypted, put its password into {PASSWORD}."
        ) from None
