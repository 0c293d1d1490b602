import pytest

from fl_core.training import LocalTraining, make_objective, objective_names


@pytest.mark.parametrize(
    ("name", "mu", "local_batchnorm"),
    [("fedavg", 0.0, False), ("fedprox", 0.3, False), ("fedbn", 0.0, True), ("fedbn_prox", 0.3, True)],
)
def test_each_name_says_what_is_pulled_and_what_stays_local(name, mu, local_batchnorm):
    objective = make_objective(name, mu=0.3)
    assert (objective.mu, objective.local_batchnorm) == (mu, local_batchnorm)


def test_there_are_four_objectives():
    assert objective_names() == ["fedavg", "fedprox", "fedbn", "fedbn_prox"]


@pytest.mark.parametrize("mu", [-0.1, float("nan"), float("inf")])
def test_a_mu_that_is_no_weight_is_refused_with_its_value(mu):
    with pytest.raises(ValueError, match=f"mu must be .*got {mu}"):
        make_objective("fedprox", mu=mu)


@pytest.mark.parametrize(
    ("field", "value"),
    [("steps", 0), ("batch_size", 1), ("learning_rate", 0.0), ("learning_rate", -1.0), ("learning_rate", float("nan"))],
)
def test_impossible_local_work_is_refused_by_field_and_value(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*got {value}"):
        LocalTraining(**{field: value})


def test_the_smallest_local_work_is_one_step_on_two_samples():
    assert LocalTraining(steps=1, batch_size=2).batch_size == 2
