"""What the docs say of the configuration is what the code says."""

from __future__ import annotations

from pathlib import Path

from rmu_exp import settings
from rmu_exp.config import reference

ROOT = Path(__file__).parent.parent


def test_configuration_page_is_up_to_date():
    assert (ROOT / "docs/configuration.md").read_text(encoding="utf-8") == reference.reference(ROOT / "conf")


def test_every_key_has_a_sentence():
    for schema in (*reference.schemas().values(), settings.Preset):
        import dataclasses

        fields = {f.name for f in dataclasses.fields(schema)} - set(reference.schemas())
        assert fields <= set(reference.sentences(schema)), schema.__name__


def test_every_choice_opens_with_a_comment():
    for group, choices in reference.groups(ROOT / "conf").items():
        for name, text in choices.items():
            assert len(text) > 20, f"{group}/{name}.yaml"
