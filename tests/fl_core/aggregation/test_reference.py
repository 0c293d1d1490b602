from math import nan

import pytest
import torch

from fl_core.aggregation import ServerView, make_rule

MALICIOUS = torch.tensor([False, True, False, True, False])


@pytest.mark.parametrize("name", ["oracle", "anchored_oracle"])
def test_an_oracle_without_the_truth_says_how_to_tell_it(name, view, normal):
    with pytest.raises(ValueError, match=r"needs the truth.*told\(malicious\)"):
        make_rule(name)(view(normal(5, 9)))


def test_the_oracle_is_the_mean_of_the_honest_clients(normal):
    updates = normal(5, 9)
    result = make_rule("oracle").told(MALICIOUS)(ServerView(updates))
    torch.testing.assert_close(result.update, (updates[0] + updates[2] + updates[4]) / 3)
    assert result.weights.tolist() == pytest.approx([1 / 3, 0, 1 / 3, 0, 1 / 3])


def test_the_anchored_oracle_is_the_unclipped_mean_of_the_honest_clients_and_the_root(view, normal):
    updates = normal(5, 9) * torch.tensor([1.0, 1.0, 100.0, 1.0, 1.0])[:, None]
    seen = view(updates)
    result = make_rule("anchored_oracle").told(MALICIOUS)(seen)
    torch.testing.assert_close(result.update, (updates[0] + updates[2] + updates[4] + seen.reference) / 4)
    assert result.weights.tolist() == pytest.approx([1 / 4, 0, 1 / 4, 0, 1 / 4])
    assert result.root_weight == pytest.approx(1 / 4)


@pytest.mark.parametrize("name", ["oracle", "anchored_oracle"])
def test_no_oracle_depends_on_what_the_malicious_clients_send(name, view, normal):
    updates, reference = normal(5, 9), normal(9, seed=1)
    rule = make_rule(name).told(MALICIOUS)
    before = rule(view(updates, reference)).update
    updates[1], updates[3] = 1e20, nan
    torch.testing.assert_close(rule(view(updates, reference)).update, before)


@pytest.mark.parametrize("name", ["oracle", "anchored_oracle"])
def test_an_honest_client_that_diverged_has_no_weight_with_an_oracle_either(name, view, normal):
    updates = normal(5, 9)
    updates[0, 3] = nan
    result = make_rule(name).told(MALICIOUS)(view(updates))
    assert result.update.isfinite().all()
    assert result.weights[0] == 0
    assert float(result.weights.sum()) + result.root_weight == pytest.approx(1)


@pytest.mark.parametrize("name", ["oracle", "anchored_oracle"])
def test_when_no_honest_client_is_left_an_oracle_falls_back_to_the_reference(name, view, normal):
    updates = normal(5, 9)
    updates[~MALICIOUS] = nan
    seen = view(updates)
    result = make_rule(name).told(MALICIOUS)(seen)
    torch.testing.assert_close(result.update, seen.reference)
    assert result.weights.tolist() == [0] * 5
    assert result.root_weight == 1


def test_an_oracle_that_was_told_of_a_rounds_rows_only_says_what_it_needs():
    view = ServerView(torch.ones(2, 3), clients=torch.tensor([1, 6]))
    with pytest.raises(
        ValueError, match=r"has client 6, and told\(\) was given 2 clients: give it Federation.malicious"
    ):
        make_rule("oracle").told(torch.tensor([False, True]))(view)
