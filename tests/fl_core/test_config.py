import pytest

from fl_core import Federation, FederationConfig, configure, federation_settings
from fl_core.data import dataset_names
from fl_core.models import network_names


def test_flat_settings_reach_the_nested_configuration():
    config = configure(
        num_clients=3, local_steps=5, batch_size=8, learning_rate=0.2, update_clip="none", root_anchor=0.5, mu=0.3
    )
    assert (config.num_clients, config.mu) == (3, 0.3)
    assert (config.training.steps, config.training.batch_size, config.training.learning_rate) == (5, 8, 0.2)
    assert (config.weighting.update_clip, config.weighting.root_anchor) == ("none", 0.5)
    assert configure() == FederationConfig()


def test_an_unknown_setting_lists_the_names():
    with pytest.raises(ValueError, match="unknown setting 'clients', 'training'") as error:
        configure(clients=3, training=None, mu=0.1)
    listed = str(error.value).partition("there are: ")[2].split(", ")
    assert listed == federation_settings()
    assert {"dataset", "local_steps", "root_anchor", "split_seed"} <= set(listed)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"num_clients": 0}, "num_clients must be at least 1, got 0"),
        ({"objective": "fedsgd"}, "unknown objective 'fedsgd'; there are: fedavg"),
        ({"shapley": "guess"}, "unknown Shapley estimator 'guess'"),
        ({"mu": -1.0}, "mu must be 0 or more.*got -1.0"),
        ({"update_clip": "max"}, "unknown update_clip 'max'"),
        ({"num_clients": "10"}, "num_clients must be a whole number, got '10'"),
        ({"num_clients": 2.5}, "num_clients must be a whole number, got 2.5"),
        ({"local_steps": True}, "local_steps must be a whole number, got True"),
        ({"mu": None}, "mu must be a number, got None"),
        ({"download": "yes"}, "download must be true or false, got 'yes'"),
        ({"objective": 3}, "objective must be text, got 3"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"network_options": 5}, "network_options must be a mapping from names to values, got 5"),
        ({"dataset_options": [1]}, r"dataset_options must be a mapping from names to values, got \[1\]"),
        ({"dataset": "mnits"}, f"unknown data set 'mnits'; there are: {', '.join(dataset_names())}"),
        ({"network": "vgg"}, f"unknown network 'vgg'; there are: {', '.join(network_names())}"),
        ({"engine": "warp"}, "unknown engine 'warp'; there are: sequential, stacked"),
        ({"root": 3}, "root must be at least 4"),
        ({"root": 1000, "validation": 347}, "leave no sample for the clients"),
        ({"num_clients": 1048}, "num_clients=1048 is more than the 1047 samples that data set 'digits' leaves"),
    ],
)
def test_an_impossible_configuration_says_what_is_wrong_with_which_value(given_, message):
    with pytest.raises(ValueError, match=message):
        Federation(configure(**given_))
