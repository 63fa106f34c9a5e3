"""Uploads a folder to a repository on the Hub, as one commit.

    upload(folder, "owner/name", "Version 3", private=True)    # the address of the commit

An upload that was interrupted is continued by running it again: the Hub says which large files it has.
"""

from pathlib import Path

from recipe.core.errors import MachineError, ParamsError


def upload(folder: Path, name: str, message: str, *, private: bool) -> str:
    """Create the repository if there is none, and upload all files of a folder. Return the address of the commit.

    Files of the repository that are not in the folder stay. Raises MachineError if the Hub refuses or does not answer,
    and ParamsError if the repository is public but should be private.
    """
    import httpx2
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if private and api.repo_info(name).private is False:  # create_repo leaves a repository that exists as it is
            raise ParamsError(
                f"--private: the repository {name} exists and is public. Make it private on the Hub, or choose another."
            )
        operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        return api.create_commit(name, operations, commit_message=message).commit_url
    except ParamsError:
        raise
    except HfHubHTTPError as error:
        raise MachineError(f"the Hub refuses the upload to {name}: {_first_line(error)} {_advice(error)}") from None
    except (OSError, ValueError, RuntimeError, httpx2.TransportError) as error:  # RuntimeError: a large file
        raise MachineError(
            f"the upload to {name} failed: {_first_line(error)} Run the command again to continue."
        ) from None


def _advice(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "Set HF_TOKEN to a token with write access to the repository (https://huggingface.co/settings/tokens)."
    return "Run the command again to continue."


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (lines or [type(error).__name__])[0]
    return text if text.endswith(".") else f"{text}."
