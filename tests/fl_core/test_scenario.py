from fractions import Fraction
from math import floor

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fl_core import Scenario
from fl_core.attacks import attack_names


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("malicious_fraction", 1.0, r"malicious_fraction must lie in \[0, 1\), got 1\.0"),
        ("malicious_fraction", -0.1, r"malicious_fraction must lie in \[0, 1\), got -0\.1"),
        ("malicious_fraction", float("nan"), r"malicious_fraction must lie in \[0, 1\), got nan"),
        ("alpha", 0.0, r"alpha must be greater than 0 \(or None for IID\), got 0\.0"),
        ("alpha", float("nan"), "alpha must be greater than 0"),
        ("onset", -1, "onset must be a round number, 0 or more, got -1"),
        ("attack", "nuke", "unknown attack 'nuke'; there are: " + ", ".join(attack_names())),
        ("attack_options", {"factor": 2.0}, "attack 'none' takes"),
        ("attack_options", {5: 1}, r"attack_options must be a mapping from names to values, got \{5: 1\}"),
    ],
)
def test_an_impossible_scenario_says_what_is_wrong_with_which_value(field, value, message):
    with pytest.raises(ValueError, match=message):
        Scenario(**{field: value})


@example(29, 100)
@given(st.integers(0, 99), st.integers(1, 200))
def test_the_number_of_malicious_clients_is_the_floor_of_the_decimal_product(percent, clients):
    # 0.29 * 100 is 28.999999999999996 in binary; what the user wrote is 29 %.
    assert Scenario(malicious_fraction=percent / 100).num_malicious(clients) == floor(Fraction(percent, 100) * clients)


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 1000))
def test_at_least_one_client_is_always_honest(fraction, clients):
    assert 0 <= Scenario(malicious_fraction=fraction).num_malicious(clients) < clients
