"""Models of hubs as inputs: `hf:ORG/NAME` (Hugging Face) and `ms:ORG/NAME` (ModelScope), by the hubs' own clients.

`@REVISION` behind the name is a branch, a tag or a commit. What a hub has sent stays in its client's own cache
(HF_HOME, MODELSCOPE_CACHE), which other programs use as well; without a network what is there is taken.
"""

import re
from functools import cache
from pathlib import Path

from yayan.errors import UserError

NAME = re.compile(r"(hf|ms):([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")
HUBS = {"hf": "Hugging Face", "ms": "ModelScope"}
# What a folder of a model or an adapter is made of; nothing that could be run
SMALL_FILES = ["*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt", "LICENSE*", "README.md"]
WEIGHTS, OLDER_WEIGHTS = "*.safetensors", "*.bin"
IN_FOLDERS = ["*/*"]  # other forms of the same weights


def is_hub_name(path: Path) -> bool:
    """Whether an input names a model of a hub."""
    return str(path).startswith(tuple(f"{hub}:" for hub in HUBS))


@cache
def fetch(path: Path) -> Path:
    """The folder that holds a model of a hub, fetched if it is not there yet; safetensors where it has some.

    Raises UserError for a name that is none, for what the hub does not have or does not give, and without a network if
    the model was not fetched before.
    """
    found = NAME.fullmatch(str(path))
    if found is None:
        cure = "write hf:ORG/NAME or ms:ORG/NAME, with @REVISION behind it if need be"
        raise UserError("this is no model of a hub", where=path, cure=cure)
    hub, name, revision = found.groups()
    client = fetch_from_hugging_face if hub == "hf" else fetch_from_modelscope
    folder = client(path, name, revision, [*SMALL_FILES, WEIGHTS])
    if not list(folder.glob(WEIGHTS)):
        folder = client(path, name, revision, [*SMALL_FILES, OLDER_WEIGHTS])
    return folder


def fetch_from_hugging_face(path: Path, name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download  # half a second that no other input needs

    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=IN_FOLDERS
        )
    except errors.GatedRepoError as error:
        cure = "accept its licence on its page, then log in (hf auth login) or set HF_TOKEN"
        raise UserError(
            "the hub gives this model to those alone who have accepted its licence", where=path, cure=cure
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise refuse_unknown(path) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, OSError) as error:
        raise refuse_unreachable(path, error) from error
    return Path(folder)


def fetch_from_modelscope(path: Path, name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        from modelscope_hub import HubApi, errors
    except ImportError as error:
        cure = "install its client: pip install 'yayan[hub]'"
        raise UserError(
            "models of ModelScope need a client that is not installed", where=path, cure=cure
        ) from error

    api = HubApi()

    def download(*, cached: bool) -> Path:
        return api.download_repo(
            name,
            "model",
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=IN_FOLDERS,
            local_files_only=cached,
        )

    try:
        return download(cached=False)
    except (errors.AuthenticationError, errors.PermissionDeniedError) as error:
        cure = "set MODELSCOPE_API_TOKEN to a token of yours"
        raise UserError("the hub does not give you this model", where=path, cure=cure) from error
    except errors.NotExistError as error:
        raise refuse_unknown(path) from error
    except (errors.HubError, OSError) as error:
        try:
            return download(cached=True)
        except (errors.HubError, OSError):
            raise refuse_unreachable(path, error) from error


def refuse_unknown(path: Path) -> UserError:
    return UserError("the hub has no such model or revision", where=path, cure="check its name")


def refuse_unreachable(path: Path, error: Exception) -> UserError:
    hub = HUBS[str(path)[:2]]
    reason = type(error).__name__
    what = f"{hub} cannot be reached ({reason}), and this model was not fetched before"
    return UserError(what, where=path, cure="connect to the network, or name a folder")
