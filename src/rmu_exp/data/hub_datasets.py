"""A hub dataset's texts, through the ``datasets`` library, its errors and its cache; and what a row may give."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rmu_exp.support import hub
from rmu_exp.support.errors import RunError, UserError, chain

if TYPE_CHECKING:
    import datasets
    import pyarrow

TEXT = "text"  # the field of an object and the column of a table
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Dataset:
    """A dataset on the hub, as a source names it."""

    repo: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Bad:
    """A line or row that gives no text: where it stands and what is wrong with it."""

    where: str
    reason: str


def checked(value: object) -> str:
    """A value as a text. Raises ValueError with what is wrong."""
    if not isinstance(value, str):
        raise ValueError(f"the text is of type {type(value).__name__}, allowed is a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError("the text holds half of a surrogate pair") from error
    return value


def values(scalars: Iterable[pyarrow.Scalar]) -> Iterator[str | Bad]:
    """The texts of a column's Arrow scalars; a null, a number or broken UTF-8 is a :class:`Bad` row."""
    for number, scalar in enumerate(scalars, 1):
        try:
            yield checked(scalar.as_py())
        except ValueError as error:  # UnicodeDecodeError is one
            yield Bad(f"row {number}", "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error))


def rows(dataset: Dataset, split: str, source: str) -> Iterator[str | Bad]:
    """The texts of a dataset's column ``text``, in order; rows without one as :class:`Bad`.

    Raises:
        UserError: no access, no such dataset, config, split or column; in offline mode, not in the cache.
        RunError: the hub cannot be reached, or a download broke off.
    """
    data = load(dataset, dataset.split or split, source)
    if TEXT not in data.column_names:
        raise UserError(f"{source}: no column {TEXT!r} (there: {', '.join(data.column_names) or 'none'})")
    yield from values(data.data.column(TEXT))


def load(dataset: Dataset, split: str, source: str) -> datasets.Dataset:
    """A split as a ``datasets.Dataset``, downloaded or from the cache. Raises as :func:`rows`."""
    hub.check(dataset.repo, "dataset", dataset.revision)  # the library would retry for half a minute
    import datasets

    try:
        with hub.asking(dataset.repo, "dataset", dataset.revision):
            data = datasets.load_dataset(dataset.repo, dataset.config, split=split, revision=dataset.revision)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        ours = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)  # else there are no such data
        cause = list(chain(error))[-1] if isinstance(error, datasets.exceptions.DatasetGenerationError) else error
        raise (RunError if ours else UserError)(f"{source}: cannot be loaded ({cause})") from error
    _check_commit(data, dataset, source)
    return data


def _check_commit(data: datasets.Dataset, dataset: Dataset, source: str) -> None:
    """Offline, the library gives the newest version in its cache, whatever was asked for: refuse another."""
    if dataset.revision is None or not data.cache_files:
        return
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=dataset.repo, repo_type="dataset")
    ref = folder / "refs" / dataset.revision
    wanted = ref.read_text() if ref.is_file() else dataset.revision
    found = Path(data.cache_files[0]["filename"]).parent.name
    if _COMMIT.fullmatch(wanted) and found != wanted:
        raise UserError(
            f"{source}: offline, only the newest revision in the cache can be read ({found}); "
            "fetch the wanted one into a folder of its own"
        )
