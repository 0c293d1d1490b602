import numpy as np
import pytest

from fl_core.aggregation import make_rule, rule_names
from fl_core.attacks import attack_names, make_attack
from fl_core.fingerprint import make_shapley, shapley_names
from fl_core.registry import Registry, check_known
from fl_core.training import make_objective, objective_names


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (make_attack, attack_names),
        (make_rule, rule_names),
        (make_shapley, shapley_names),
        (make_objective, objective_names),
    ],
)
def test_an_unknown_name_is_an_error_that_lists_what_there_is(make, names):
    with pytest.raises(ValueError, match="'no_such_thing'") as error:
        make("no_such_thing")
    listed = str(error.value).partition("there are: ")[2].split(", ")
    assert sorted(listed) == sorted(names())


@pytest.mark.parametrize(
    ("make", "name", "accepted"),
    [(make_attack, "gaussian_noise", ("colluding", "factor")), (make_rule, "krum", ("num_byzantine",))],
)
def test_a_wrong_parameter_is_an_error_that_names_the_accepted_ones(make, name, accepted):
    with pytest.raises(ValueError, match=f"'{name}'.*'stregnth': 2") as error:
        make(name, stregnth=2)
    assert all(parameter in str(error.value) for parameter in accepted)


def test_a_type_error_inside_a_factory_is_not_mistaken_for_a_wrong_parameter():
    registry: Registry[int] = Registry("number")
    registry.register("broken")(lambda: len(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has no len"):
        registry.make("broken")


def test_a_name_can_be_taken_only_once():
    registry: Registry[int] = Registry("number")
    registry.register("one")(lambda: 1)
    with pytest.raises(ValueError, match="number 'one' is registered already"):
        registry.register("one")(lambda: 2)
    assert registry.make("one") == 1
    assert list(registry) == ["one"]


def test_every_unknown_name_is_named():
    with pytest.raises(ValueError, match="unknown fruit 'x', 'z'; there are: a, b"):
        check_known("fruit", ["x", "a", "z"], ["a", "b"])
    check_known("fruit", ["a", "b"], ["a", "b"])


@pytest.mark.parametrize(
    ("make", "name", "option"),
    [
        (make_attack, "partial_scaling", {"share": "1e-1"}),
        (make_attack, "fang_trim", {"b": "2e0"}),
        (make_attack, "sign_flip", {"colluding": "yes"}),
        (make_rule, "geometric_median", {"smoothing": "1e-6"}),
        (make_rule, "flguard", {"learning_rate": "1e-3"}),
    ],
)
def test_text_in_the_place_of_a_number_or_a_switch_is_an_error_in_words(make, name, option):
    ((field, value),) = option.items()
    wanted = "true or false" if value == "yes" else "a number"
    with pytest.raises(ValueError, match=f"'{name}': {field} must be {wanted}, got '{value}'"):
        make(name, **option)


@pytest.mark.parametrize(
    ("make", "name", "options", "message"),
    [
        (make_rule, "krum", {"num_byzantine": "3"}, "num_byzantine must be a whole number or None, got '3'"),
        (make_rule, "trimmed_mean", {"num_byzantine": 1.5}, "num_byzantine must be a whole number or None, got 1.5"),
        (make_rule, "dnc", {"iterations": 1.5}, "iterations must be a whole number, got 1.5"),
        (make_rule, "norm_bounding", {"bound": "1e-2"}, "bound must be a number.*got '1e-2' \\(YAML takes"),
        (make_attack, "sign_flip", {"colluding": 1}, "colluding must be true or false, got 1"),
        (make_attack, "sign_flip", {"scale": True}, "scale must be a number, got True"),
        (make_attack, "feature_box", {"evaluations": 2.5}, "evaluations must be a whole number, got 2.5"),
    ],
)
def test_an_option_of_another_type_is_refused_where_it_is_given(make, name, options, message):
    with pytest.raises(ValueError, match=f"'{name}': {message}"):
        make(name, **options)


def test_a_lone_name_is_no_list_of_letters():
    with pytest.raises(ValueError, match=r"expected a list of names \(fruit\), got 'apple'; there are: a, b"):
        check_known("fruit", "apple", ["a", "b"])


def test_numbers_of_numpy_and_whole_numbers_for_numbers_are_taken():
    assert make_rule("krum", num_byzantine=np.int64(2)).num_byzantine == 2
    assert make_attack("sign_flip", scale=2).scale == 2
