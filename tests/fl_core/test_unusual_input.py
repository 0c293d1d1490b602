"""Input that is unusual or wrong: the right result, or an error that names it."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fl_core import Federation, Scenario, configure
from fl_core.data import Dataset, dirichlet, label_skew, load_dataset
from fl_core.data.shift import FeatureShift
from fl_core.models import make_network


@pytest.mark.parametrize("classes", [3, 4, 10])
def test_label_skew_of_balanced_classes_gives_exactly_the_share_q(classes):
    labels = np.repeat(np.arange(classes), 120)
    shards = label_skew(labels, classes, np.random.default_rng(0), q=0.5)
    assert [np.bincount(labels[shard]).max() for shard in shards] == [60] * classes


@pytest.mark.parametrize("classes", [3, 10])
def test_label_skew_of_q_0_gives_a_client_nothing_of_its_main_class(classes):
    labels = np.repeat(np.arange(classes), 60)
    shards = label_skew(labels, classes, np.random.default_rng(0), q=0)
    assert [np.bincount(labels[shard], minlength=classes).min() for shard in shards] == [0] * classes


def test_the_default_engine_runs_an_mlp_with_groupnorm():
    federation = Federation(configure(network="mlp", network_options={"norm": "group"}, num_clients=3))
    federation.reset(Scenario(), 0)
    assert federation.local_round().view.updates.isfinite().all()


@pytest.mark.parametrize("kind", ["garbage", "module", "list", "numbers"])
def test_weights_that_are_no_state_dict_are_refused_by_the_files_name(tmp_path, kind):
    path = tmp_path / "weights"
    if kind == "garbage":
        path.write_bytes(b"garbage")
    else:
        torch.save({"module": nn.Linear(2, 2), "list": [1, 2], "numbers": {"conv1.weight": 3}}[kind], path)
    with pytest.raises(ValueError, match="weights"):
        make_network("resnet18", (3, 32, 32), 10, weights=path)


@pytest.mark.parametrize("strength", [1e4, 1e300])
def test_a_feature_shift_that_cannot_be_computed_is_refused(strength):
    with pytest.raises(ValueError, match="feature_shift"):
        federation = Federation(configure(num_clients=3))
        federation.reset(Scenario(feature_shift=strength), 0)


def test_a_rotation_turns_images_that_are_not_square_and_does_not_shear_them():
    image = torch.zeros(1, 9, 17)
    image[0, 4, 11] = 1  # three columns right of the centre
    turned = FeatureShift(rotation=90.0)(image)
    assert turned[0].argmax() == 1 * 17 + 8  # three rows above it


def test_the_sides_of_a_data_set_do_not_overlap():
    pixels, labels = torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(6) % 2
    with pytest.raises(ValueError, match="train and test"):
        Dataset("x", pixels, labels, ("a", "b"), torch.arange(4), torch.arange(3, 6))


def test_indices_of_a_data_set_lie_within_it():
    pixels, labels = torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.arange(6) % 2
    with pytest.raises(ValueError, match="train and test"):
        Dataset("x", pixels, labels, ("a", "b"), torch.arange(4), torch.tensor([4, 9]))


def test_an_empty_data_set_is_refused():
    none = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="data set 'x'"):
        Dataset("x", torch.zeros(0, 1, 2, 2, dtype=torch.uint8), none, ("a", "b"), none, none)


@pytest.mark.parametrize("minimum", [0, -1])
def test_a_minimum_below_one_is_refused(minimum):
    with pytest.raises(ValueError, match="minimum"):
        dirichlet(np.arange(100) % 10, 8, np.random.default_rng(0), alpha=0.01, minimum=minimum)


def folder(root, a=8, b=8, name="{c}{i:03d}.png"):
    for c, count in (("a", a), ("b", b)):
        (root / "train" / c).mkdir(parents=True)
        for i in range(count):
            pixels = np.random.default_rng(i).integers(256, size=(6, 5), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "train" / c / name.format(c=c, i=i))
    return root


def test_a_class_with_one_image_is_named_without_a_test_folder_too(tmp_path):
    with pytest.raises(ValueError, match="class 'b' has 1 image"):
        load_dataset("image_folder", folder(tmp_path, b=1))


def test_fewer_than_four_groups_are_refused_by_the_data_sets_name(tmp_path):
    name = "{c}_{i}.png"
    with pytest.raises(ValueError, match=r"image_folder.*group"):
        load_dataset("image_folder", folder(tmp_path, name=name), group_pattern="^([ab])_")


def test_too_few_images_to_hold_any_out_are_refused_by_the_data_sets_name(tmp_path):
    with pytest.raises(ValueError, match="data set 'image_folder'"):
        load_dataset("image_folder", folder(tmp_path, a=2, b=2))


def test_grouped_images_of_a_rare_class_give_no_warning(tmp_path):
    name = "{c}{i}.png"
    dataset = load_dataset("image_folder", folder(tmp_path, a=16, b=3, name=name), group_pattern=r"^(\w+)\.")
    assert set(dataset.labels[dataset.train].tolist()) == {0, 1}


def test_an_image_of_absurd_size_is_refused_by_name(tmp_path, monkeypatch):
    folder(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_dataset("image_folder", tmp_path)


def test_grey_with_alpha_is_grey(tmp_path):
    path = folder(tmp_path) / "train" / "a" / "a000.png"
    Image.open(path).convert("LA").save(path)
    assert load_dataset("image_folder", tmp_path).image_shape == (1, 6, 5)


def test_a_floating_point_tiff_is_refused_or_scaled_and_not_made_black(tmp_path):
    folder(tmp_path)
    grey = np.linspace(0, 1, 30, dtype=np.float32).reshape(6, 5)
    Image.fromarray(grey).save(tmp_path / "train" / "a" / "a999.tif")
    try:
        dataset = load_dataset("image_folder", tmp_path)
    except ValueError as error:
        assert "a999.tif" in str(error)
    else:
        assert dataset.pixels[8].unique().numel() > 2


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    path = folder(tmp_path) / "train" / "a" / "a000.png"
    Image.open(path).convert("P").save(path, transparency=bytes([0] * 5 + [255] * 251))
    assert load_dataset("image_folder", tmp_path).image_shape == (3, 6, 5)


@pytest.mark.parametrize("size", ["8", 6.5, [8]])
def test_an_image_size_of_another_type_is_refused_by_its_value(tmp_path, size):
    with pytest.raises(ValueError, match="image_size"):
        load_dataset("image_folder", folder(tmp_path), image_size=size)
