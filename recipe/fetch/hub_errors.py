"""Turns what the Hub and the network raise into one line that says what to do.

with explained("model", "owner/name", commit):
    ...  # requests to the Hub
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe.core.errors import MachineError, ParamsError, RecipeError
from recipe.fetch.download import RepoType


@contextmanager
def explained(repo_type: RepoType, name: str, revision: str, cache: Path | None = None) -> Iterator[None]:
    """Turn what the Hub and the network raise into one line that says what to do."""
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
    page = f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{name}"
    token = "HF_TOKEN is set, but does not open it" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    kept = f" What was received is kept in {cache}; run this again to go on." if cache else ""
    try:
        yield
    except RecipeError:
        raise
    except HFValidationError:
        raise ParamsError(f"params.yaml: {section}.id is {name!r}, which is no name on the Hub (owner/name).") from None
    except GatedRepoError:
        raise MachineError(
            f"{name} is open only to those who accepted its terms: do so on {page}, and set HF_TOKEN to a token of "
            f"that account ({token})."
        ) from None
    except RepositoryNotFoundError:
        raise ParamsError(f"params.yaml: {section}.id: {page} does not exist, or is private ({token}).") from None
    except RevisionNotFoundError:
        raise ParamsError(
            f"params.yaml: {section}.revision: {name} has no {revision}. Set it to a branch (main), and run "
            "`recipe pin`."
        ) from None
    except RemoteEntryNotFoundError as error:
        raise MachineError(
            f"{constants.ENDPOINT} lists a file of {name} that it does not have: {error.response.url}."
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = f" ({token})" if status in {401, 403} else ""
        raise MachineError(
            f"{constants.ENDPOINT} answered {status} for {name}{hint}.{kept or ' Try again later.'}"
        ) from None
    except (httpx2.TransportError, LocalEntryNotFoundError, ConnectionError) as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise MachineError(
            f"{constants.ENDPOINT} is out of reach: {reason}.{kept} HF_HUB_OFFLINE=1 lives from the cache."
        ) from None
    except OSError as error:
        raise MachineError(f"{name} could not be stored: {error}.{kept}") from None
