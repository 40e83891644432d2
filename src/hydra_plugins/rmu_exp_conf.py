"""Configuration files of other distributions: an entry point of the group ``rmu_exp.conf`` names a package of them."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from rmu_exp.config.plugins import added


class AddedConf(SearchPathPlugin):
    """Adds each to where Hydra looks, after the project's own."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for package in added("conf"):
            search_path.append(provider=package, path=f"pkg://{package}")
