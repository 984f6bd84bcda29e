"""Configs as values, and sections that check themselves."""

import dataclasses
from typing import ClassVar

import pytest

from anysat_jax.configs import pretrain
from anysat_jax.errors import ConfigError
from anysat_jax.train.config import POSITIVE, Section, as_json, checked, differences, read_section, warn_config_changes


@dataclasses.dataclass(frozen=True)
class Inner(Section):
    NAME = "outer.inner"
    size: int = checked(POSITIVE)
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outer(Section):
    NAME = "outer"
    RENAMED: ClassVar = {"width": "it is inner.size now"}
    inner: Inner
    title: str


def read(**values):
    return read_section(Outer, {"inner": {"size": 3, "names": ["a"]}, "title": "t"} | values, "FILE.py")


def test_differences_are_by_dotted_name():
    old, new = {"a": {"b": 1, "c": [1, 2]}, "d": 3}, {"a": {"b": 2, "c": [1, 2]}, "e": 4}
    assert differences(old, new) == [("a.b", 1, 2), ("d", 3, None), ("e", None, 4)]


def test_the_config_as_json_equals_itself():
    assert differences(as_json(pretrain.get_config()), as_json(pretrain.get_config())) == []


def test_changes_are_warned_of_unless_they_are_free(caplog):
    with caplog.at_level("WARNING"):
        warn_config_changes({"a": 1, "b": {"c": 2}}, {"a": 2, "b": {"c": 3}}, ("b.",))
    assert [record.getMessage() for record in caplog.records] == ["a was 1 in the checkpoint and is 2 now"]


def test_sections_inside_a_section_are_read_and_lists_become_tuples():
    assert read() == Outer(Inner(3, ("a",)), "t")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(inner={"size": 0, "names": []}), r"^outer\.inner\.size = 0 must be above 0$"),
        (dict(inner={"size": None, "names": []}), r"^outer\.inner\.size = None must be above 0$"),
        (dict(inner={"size": "3", "names": []}), r"^outer\.inner\.size = '3' must be above 0$"),
        (dict(inner={"size": 2.5, "names": []}), r"^outer\.inner\.size = 2.5 must be of the type int$"),
        (dict(inner={"size": True, "names": []}), r"^outer\.inner\.size = True must be of the type int$"),
        (
            dict(inner={"size": 3, "names": [1]}),
            r"^outer\.inner\.names = \(1,\) must be of the type tuple\[str, \.\.\.\]",
        ),
        (dict(inner={"size": 3, "names": "ab"}), r"^outer\.inner\.names = 'ab' must be of the type tuple\[str, "),
        (dict(title=None), r"^outer\.title = None must be of the type str$"),
        (dict(inner={"names": []}), r"^the config has no outer\.inner\.size; FILE\.py shows every field$"),
        (dict(colour="red"), r"^the config's outer\.colour is unknown; FILE\.py shows every field$"),
        (dict(width=3), r"^the config's outer\.width is gone: it is inner\.size now$"),
    ],
)
def test_missing_unknown_renamed_and_wrong_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        read(**values)
