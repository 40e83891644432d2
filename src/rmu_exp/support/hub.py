"""What can go wrong with the model hub, each in one line that says what to do next.

Its clients raise some twenty kinds of error, often one inside another. This module knows nothing of what is downloaded.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from rmu_exp.support import program
from rmu_exp.support.errors import RunError, UserError, first_line
from rmu_exp.support.errors import explain as first_known

PAGE = "https://huggingface.co"


@contextmanager
def asking(repo: str, kind: str, revision: str | None = None) -> Iterator[None]:
    """Run a block that uses the hub; its errors become one line.

    Args:
        repo: ``org/name``.
        kind: ``model`` or ``dataset``.

    Raises:
        UserError: gated, missing, a wrong token, no such revision, or not in the cache while offline.
        RunError: the hub cannot be reached, answers with an error, or a download broke off.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Not enough free disk space")  # the error that follows says it
            yield
    except (UserError, RunError):
        raise
    except Exception as error:
        line = explained(error, repo, kind, revision)
        if line is None:
            raise
        raise line from error


@contextmanager
def sending(repo: str) -> Iterator[None]:
    """Run a block that writes to a model repository ``org/name``; its errors become one line.

    Raises:
        UserError: switched off, no token, not a name, what the token may not write to, or refused contents.
        RunError: as :func:`asking`.
    """
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{repo}: the hub is switched off (HF_HUB_OFFLINE); unset it, where there is a network")
    if get_token() is None:
        raise UserError(f"{repo}: no token for the hub; `hf auth login` with one that may write, or set HF_TOKEN")
    with asking(repo, "model"):
        try:
            yield
        except Exception as error:
            line = first_known(error, [partial(_refused, said=error, repo=repo)])
            if line is None:
                raise
            raise line from error


def _refused(error: BaseException, said: BaseException, repo: str) -> UserError | None:
    """The line for what the hub refuses to take; ``said``: the error that its client made of it."""
    from huggingface_hub.errors import HfHubHTTPError

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 403:
        return UserError(
            f"{repo}: it or its name is not yours, or the token in use may not write; "
            "choose another name, or `hf auth login` with a token of its owner"
        )
    return UserError(f"{repo}: the hub refuses what was sent ({said})") if status == 400 else None


def show_bars(shown: bool) -> None:
    """Whether the client shows its bars from here on: in a terminal, for what takes long; the user's word wins."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        (enable_progress_bars if shown and sys.stderr.isatty() else disable_progress_bars)()


def check(repo: str, kind: str, revision: str | None = None) -> None:
    """One quick request, with no retries: is the hub there, is the repository, may we read it?

    Nothing is asked when the hub is switched off (``HF_HUB_OFFLINE=1``). Raises as :func:`asking`.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return
    name = "README.md" if kind == "dataset" else "config.json"
    # a file that is not there is as good an answer: the repository is
    with asking(repo, kind, revision), suppress(EntryNotFoundError):
        get_hf_file_metadata(hf_hub_url(repo, name, repo_type=kind, revision=revision))


def explained(error: BaseException, repo: str, kind: str, revision: str | None = None) -> UserError | RunError | None:
    """The one line for an error of the hub's clients about a repository; None when the hub has no part in it."""
    return first_known(error, [partial(_line, repo=repo, kind=kind, revision=revision)])


def explain(error: BaseException) -> RunError | None:
    """The line for an error of the hub's client that nobody knew the repository of."""
    if "huggingface_hub" not in sys.modules:
        return None
    from huggingface_hub import errors

    ours = (errors.HfHubHTTPError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError)
    return RunError(f"the hub: {first_line(error)}") if isinstance(error, ours) else None


def _line(error: BaseException, repo: str, kind: str, revision: str | None) -> UserError | RunError | None:
    from huggingface_hub import constants, errors

    page = f"{PAGE}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    away = isinstance(error, (ConnectionError, errors.LocalEntryNotFoundError)) and constants.HF_HUB_OFFLINE
    if isinstance(error, errors.OfflineModeIsEnabled) or away:
        return UserError(
            f"{repo}: not in {constants.HF_HOME}, and the hub is switched off (HF_HUB_OFFLINE); "
            f"fetch it where there is a network ({program.command('fetch')}) and set HF_HOME to that folder"
        )
    if isinstance(error, errors.GatedRepoError):
        refused = " that the token in use may not read" if error.response.status_code == 403 else ""
        account = "then `hf auth login` with a token of that account"
        return UserError(f"{repo}: a gated {kind}{refused}; ask for access at {page}, {account}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UserError(
            f"{repo}: no such {kind} on the hub, or a private one; check the name at {PAGE}, "
            "or `hf auth login` with an account that may read it"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"{repo}: no revision {revision!r}; those there are: {page}/tree/main")
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{repo}: not a name on the hub, allowed is ORG/NAME")
    if isinstance(error, errors.HfHubHTTPError) and not isinstance(error, errors.EntryNotFoundError):
        if (status := error.response.status_code) not in (401, 403):
            return RunError(f"{repo}: the hub answered {status}; try again in a while")
        return UserError(f"{repo}: the hub refuses the token; `hf auth login` with a valid one, or unset HF_TOKEN")
    # by name: the clients have used requests, httpx and httpx2 for transport, whose errors share no class
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"RemoteProtocolError", "ReadError", "ReadTimeout"} or str(error).startswith("Consistency check failed"):
        why = f"the connection broke off ({first_line(error)})"
        return RunError(f"{repo}: {why}; nothing partial is kept as whole, run it again")
    if names & {"TransportError", "ConnectionError", "ProtocolError"}:
        return RunError(
            f"{repo}: the hub cannot be reached ({first_line(error)}); check the network, or fetch the files "
            f"where there is one ({program.command('fetch')}), then set HF_HOME to that folder and HF_HUB_OFFLINE=1"
        )
    return None
