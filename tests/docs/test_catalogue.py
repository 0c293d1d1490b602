import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fl_core.aggregation import preaggregation_names, rule_factory, rule_names
from fl_core.attacks import attack_factory, attack_names

PATH = Path(__file__).parents[2] / "docs" / "catalogue.py"


@pytest.fixture(scope="module")
def catalogue():
    spec = importlib.util.spec_from_file_location("catalogue", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["catalogue"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["catalogue"]


@dataclass(frozen=True)
class Shout:
    """Sends it louder.

    Formula: ``k·x|``
        for any k.
    Source: a paper.
    Checked against: numpy.

    More words.

    Attributes:
        k: How loud.
    """

    k: float = 2.0


def test_a_docstring_is_read_field_by_field(catalogue):
    entry = catalogue.read("shout", Shout)
    assert (entry.summary, entry.text) == ("Sends it louder.", "More words.")
    assert entry.fields == {"Formula": "`k·x|` for any k.", "Source": "a paper.", "Checked against": "numpy."}
    assert entry.parameters == {"k": 2.0}


def test_a_field_that_is_missing_is_named(catalogue):
    class Silent:
        """Sends nothing.

        Source: ours.
        """

    with pytest.raises(ValueError, match=r"'silent'.*lacks Formula, Checked against"):
        catalogue.read("silent", Silent)


def test_a_table_has_a_row_for_each_entry_under_its_family_and_no_stray_column(catalogue):
    text = catalogue.page("T", "I.", [catalogue.read("shout", Shout)], {"what": lambda e: e.fields["Formula"]})
    assert "| `shout` | `k·x\\|` for any k. |" in text
    assert "**`shout`** More words." in text


@pytest.mark.parametrize("name", ["attacks.md", "rules.md"])
def test_the_committed_pages_say_what_the_docstrings_say(catalogue, name):
    assert (PATH.parent / name).read_text() == catalogue.PAGES[name](), "run python docs/catalogue.py"


def test_the_pages_have_every_name_that_comes_with_the_package_and_no_other(catalogue):
    attacks, rules = catalogue.attacks_page(), catalogue.rules_page()
    for name in [name for name in attack_names() if name != "none"]:
        assert (f"| `{name}` |" in attacks) == attack_factory(name).__module__.startswith("fl_core.")
    for name in [*rule_names(), *preaggregation_names()]:
        assert (f"| `{name}` |" in rules) == rule_factory(name).__module__.startswith("fl_core.")
