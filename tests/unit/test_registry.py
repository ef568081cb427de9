"""The table of named implementations."""

import pytest

from colossal_llama.data.chat_templates import CHAT_TEMPLATES
from colossal_llama.errors import UserError
from colossal_llama.plugins import PLUGINS
from colossal_llama.registry import Registry


@pytest.fixture
def colours() -> Registry[int]:
    registry: Registry[int] = Registry("colour")
    registry.add("red", 1)
    registry.add("blue", 2)
    return registry


def test_entries_are_found_and_listed_in_order(colours: Registry[int]) -> None:
    assert colours.get("blue") == 2
    assert colours.names() == list(colours) == ["red", "blue"]


def test_a_name_is_taken_once(colours: Registry[int]) -> None:
    with pytest.raises(ValueError, match="colour 'red' is registered twice"):
        colours.add("red", 3)
    assert colours.get("red") == 1


def test_an_unknown_name_lists_the_known_ones(colours: Registry[int]) -> None:
    with pytest.raises(UserError, match="unknown colour 'green'; known: red, blue"):
        colours.get("green")


def test_decorator_returns_what_it_registers() -> None:
    registry: Registry[type] = Registry("class")

    @registry.register("one")
    class One:
        pass

    assert registry.get("one") is One


def test_the_projects_own_tables() -> None:
    assert set(PLUGINS) == {"ddp", "zero2", "zero2_cpu", "gemini", "gemini_auto", "3d"}
    assert set(CHAT_TEMPLATES) == {
        "colossal_llama_2",
        "colossal_llama_3",
        "chatml",
        "llama3",
        "open_llama",
        "tokenizer",
    }
    assert all(PLUGINS.get(name).summary for name in PLUGINS)
