"""Turns errors from the Hub and the network into one-line messages that say what to do.

with explained("model", "owner/name", commit):
    ...  # requests to the Hub
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe.core.errors import MachineError, ParamsError, RecipeError
from recipe.core.format import first_line, without_credentials
from recipe.fetch.download import RepoType


@contextmanager
def explained(repo_type: RepoType, name: str, revision: str, cache: Path | None = None) -> Iterator[None]:
    """Turn errors from the Hub and the network into one-line messages. `cache` is the folder for received data."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    section = "model" if repo_type == "model" else "data"
    hub = without_credentials(constants.ENDPOINT)
    page = f"{hub}/{'datasets/' if repo_type == 'dataset' else ''}{name}"
    token = "HF_TOKEN is set, but does not give access" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    kept = f" The received data is kept in {cache}. Run this command again to resume." if cache else ""
    try:
        yield
    except RecipeError:
        raise
    except HFValidationError:
        raise ParamsError(f"params.yaml: {section}.id is {name!r}, not a valid name on the Hub (owner/name).") from None
    except GatedRepoError:
        raise MachineError(
            f"{name} is gated ({token}). Accept its terms on {page}, and set HF_TOKEN to a token of the account that "
            "accepted the terms."
        ) from None
    except RepositoryNotFoundError:
        raise ParamsError(f"params.yaml: {section}.id: {page} does not exist or is private ({token}).") from None
    except RevisionNotFoundError:
        raise ParamsError(
            f"params.yaml: {section}.revision: {name} has no revision {revision}. Set {section}.revision to a branch "
            "(such as main), and run `recipe pin`."
        ) from None
    except RemoteEntryNotFoundError as error:
        address = without_credentials(str(error.response.url).partition("?")[0])  # the query may contain a signature
        raise MachineError(f"{hub} lists a file of {name}, but the file does not exist: {address}.") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = f" ({token})" if status in {401, 403} else ""
        raise MachineError(
            f"{hub} returned HTTP status {status} for {name}{hint}.{kept or ' Try again later.'}"
        ) from None
    except (httpx2.TransportError, LocalEntryNotFoundError, ConnectionError) as error:
        raise MachineError(
            f"{hub} is unreachable: {first_line(error, 120)}.{kept} Set HF_HUB_OFFLINE=1 to use only the cache."
        ) from None
    except OSError as error:
        raise MachineError(f"{name} could not be saved: {error}.{kept}") from None
