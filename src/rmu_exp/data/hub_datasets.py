"""A hub dataset's texts, through the ``datasets`` library, its errors and its cache; and what a row may give."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rmu_exp.data.fields import Fields
from rmu_exp.support import hub
from rmu_exp.support.errors import RunError, UserError, chain, first_line

if TYPE_CHECKING:
    import datasets
    import pyarrow

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


def values(rows: Iterable[Sequence[pyarrow.Scalar]], way: tuple[str, list[str]], fields: Fields) -> Iterator[str | Bad]:
    """The texts of a table's rows, of the columns that ``way`` names; a null, a number or broken UTF-8 is a bad one."""
    for number, row in enumerate(rows, 1):
        try:
            yield fields.put(way[0], {name: scalar.as_py() for name, scalar in zip(way[1], row, strict=True)})
        except ValueError as error:  # UnicodeDecodeError is one
            yield Bad(f"row {number}", "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error))


def rows(dataset: Dataset, split: str, source: str, fields: Fields) -> Iterator[str | Bad]:
    """The texts of a dataset, in order; rows without one as :class:`Bad`.

    Raises:
        UserError: no access, no such dataset, config, split or column; in offline mode, not in the cache.
        RunError: the hub cannot be reached, or a download broke off.
    """
    return of_dataset(load(dataset, dataset.split or split, source), source, fields)


def of_dataset(data: datasets.Dataset, source: str, fields: Fields) -> Iterator[str | Bad]:
    """The texts of a dataset that is here. Raises UserError: it has no such column."""
    way = fields.of(data.column_names)
    if way is None:
        raise UserError(f"{source}: {fields.lacking(data.column_names, 'column')}")
    return values(zip(*(data.data.column(name) for name in way[1]), strict=True), way, fields)


def saved(folder: Path, source: str, fields: Fields) -> Iterator[str | Bad]:
    """The texts of a folder that ``save_to_disk`` wrote. Raises UserError: it is damaged, or holds several splits."""
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # whatever the library raises at a damaged folder
        raise UserError(f"{source}: cannot be loaded ({first_line(error)}); save it again") from error
    if isinstance(data, datasets.DatasetDict):
        raise UserError(f"{source}: holds the splits {', '.join(data)}; give one, such as {source}/{next(iter(data))}")
    return of_dataset(data, source, fields)


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
