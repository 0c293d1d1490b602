"""Rounds on another device: the same numbers, nothing mixed, and hardly anything read back.

Where there is no GPU, pretend_device.py has what stands in for one. ``OPTIGRAD_DEVICE=cuda pytest
tests/fl_core/test_device.py`` takes the first real one: the same comparisons, without the count of what is read back.
"""

import copy
import os
from dataclasses import replace

import pytest
import torch

from agents.evaluation import Grid
from agents.evaluation.cells import run_cell
from agents.evaluation.detection import Detection
from fl_core import Federation, Scenario, config, configure, federation
from fl_core.aggregation import GivenTrust, ServerView, TrustWeighting, make_rule, rule_names
from fl_core.aggregation.reference import ReferenceRule
from fl_core.attacks import AdversaryView, attack_names, make_attack
from fl_core.device import check_device
from fl_core.fingerprint import forget_autoencoders, geometry, native
from fl_core.models import ParameterLayout, make_network
from fl_core.training import make_engine, make_objective
from optigrad_env import OptiGradEnv

REAL = "OPTIGRAD_DEVICE" in os.environ
if REAL:
    DEVICE = check_device(os.environ["OPTIGRAD_DEVICE"])
else:
    from .pretend_device import DEVICE, pretending


@pytest.fixture(scope="module", autouse=True)
def _autoencoders_of_their_own():
    """Those on the pretend device are not left behind."""
    yield
    forget_autoencoders()


@pytest.fixture
def gpu(monkeypatch):
    """What ``device="cuda"`` names, and the count of what the host reads from it; ``None`` where it cannot be told."""
    if REAL:
        # Products of full precision, and the autoencoder of the CPU: hundreds of Adam's steps on numbers that are
        # summed in another order end elsewhere.
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        monkeypatch.setattr(Federation, "autoencoder", moved_autoencoder)
        yield None
        return
    for module in (config, federation):
        monkeypatch.setattr(module, "check_device", lambda name: DEVICE if name == "cuda" else check_device(name))
    with pretending() as mode:
        yield mode


autoencoder_of = Federation.autoencoder


def moved_autoencoder(moved, *_):
    """What gives the CPU's autoencoder, on the device of this federation."""

    def give():
        own = Federation(replace(moved.config, device="cpu"))
        own.use_root(moved._root)
        return copy.deepcopy(autoencoder_of(own, *own.initial_model())()).to(moved.device)

    return give


def forget_reads(gpu) -> None:
    """The count begins again."""
    if gpu is not None:
        gpu.reads.clear()


def assert_reads(gpu, count: int) -> None:
    """How often the host read something since; a real GPU does not say."""
    if gpu is not None:
        assert sum(gpu.reads.values()) == count, gpu.reads


def settings_on(device: str, **settings):
    """The same engine on both, so that equal means equal."""
    return configure(**{"device": device, "engine": "stacked", "num_clients": 6, **settings})


def begun(device: str, scenario: Scenario, **settings) -> Federation:
    built = Federation(settings_on(device, **settings))
    built.reset(scenario, entropy=3)
    return built


@pytest.mark.parametrize("network", ["small_cnn", "mlp"])
@pytest.mark.parametrize("name", ["stacked", "sequential"])
def test_engines_work_where_their_tensors_are_and_read_nothing_back(gpu, normal, network, name):
    built = make_network(network, (1, 8, 8), 10)
    layout = ParameterLayout(built, local_batchnorm=True)
    engine = make_engine(name, built, layout)
    shared, local = layout.initial(built)
    images, labels = normal(5, 2, 4, 1, 8, 8), torch.arange(40).view(5, 2, 4) % 10
    given = shared, local.repeat(5, 1), images, labels

    def everything(shared, local, images, labels):
        trained = engine.train(shared, local, images, labels, objective=make_objective("fedbn_prox"), learning_rate=0.1)
        models = shared + trained[0]
        again = engine.reestimate(models, local, images[0, 0])
        return *trained, again, engine.logits(models, again, images[0, 1])

    expected = everything(*given)
    found = everything(*(tensor.to(DEVICE) for tensor in given))
    assert_reads(gpu, 0)
    for one, other in zip(found, expected, strict=True):
        assert one.device == DEVICE
        torch.testing.assert_close(one.cpu(), other, atol=1e-5, rtol=1e-5 if REAL else 1.3e-6)


def test_geometry_reads_nothing_back(gpu, normal, monkeypatch):
    given = normal(5, 3000), normal(3000, seed=1), torch.ones(3000)
    found = geometry.measure(*(tensor.to(DEVICE) for tensor in given))
    assert_reads(gpu, 0)
    monkeypatch.setattr(native, "serves", lambda *tensors: False)
    for name, value in vars(geometry.measure(*given)).items():
        torch.testing.assert_close(getattr(found, name).cpu(), value, msg=name)


@pytest.mark.parametrize("name", attack_names())
def test_an_attack_makes_the_same_update_on_either_device(gpu, name):
    rounds = []
    for device in ("cpu", "cuda"):
        built = begun(device, Scenario(name, 0.4, alpha=None))
        try:
            rounds.append(built.local_round(make_rule("fedavg")))
        except ValueError as error:  # an attack that must be told more than a round knows
            rounds.append(str(error))
    one, other = rounds
    if isinstance(one, str):
        assert one == other
        return
    assert other.view.updates.device == DEVICE
    torch.testing.assert_close(other.view.updates.cpu(), one.view.updates, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [*rule_names(), "nnm+krum", "bucketing+median", "clipping+fedavg", "arc+mda"])
def test_a_rule_makes_the_same_aggregate_on_either_device(gpu, name):
    results = []
    for device in ("cpu", "cuda"):
        built = begun(device, Scenario("sign_flip", 0.3, alpha=0.5))
        view = built.local_round().view
        spoiled = view.updates.clone()
        spoiled[2] = torch.nan
        rule = make_rule(name)
        if isinstance(rule, ReferenceRule):
            rule = rule.told(built.malicious)
        results += [rule(view), rule(replace(view, updates=spoiled)), rule(replace(view, updates=spoiled * torch.nan))]
    for one, other in zip(results[:3], results[3:], strict=True):
        assert other.update.device == DEVICE
        torch.testing.assert_close(other.update.cpu(), one.update, atol=1e-5, rtol=1e-4)
        assert (one.weights is None) == (other.weights is None)
        if one.weights is not None:
            torch.testing.assert_close(other.weights.cpu(), one.weights, atol=1e-4, rtol=1e-4)


def test_detection_is_the_same_on_either_device(gpu):
    weights, corrupted = torch.tensor([0.1, 0.4, 0.0, 0.5]), torch.tensor([True, False, True, False])
    figures = []
    for given in (weights, weights.to(DEVICE)):
        detection = Detection(0.4)
        detection.add(given, corrupted)
        figures.append(detection.figures())
    assert figures[0] == figures[1]
    assert figures[0]["detection_auroc"] == 1


@pytest.mark.parametrize("shapley", ["surrogate", "permutation", "exact"])
def test_the_fingerprint_is_the_same_on_either_device(gpu, shapley):
    found = [
        begun(device, Scenario("scaling", 0.3, alpha=0.5), shapley=shapley).local_round().view.fingerprint.raw
        for device in ("cpu", "cuda")
    ]
    assert found[1].device == DEVICE
    torch.testing.assert_close(found[1].cpu(), found[0], atol=1e-4, rtol=1e-3)


def test_an_autoencoder_that_was_trained_on_the_device_judges_alike(gpu):
    federations = [Federation(settings_on(device)) for device in ("cpu", "cuda")]
    trained = [autoencoder_of(built, *built.initial_model())() for built in federations]
    given = begun("cpu", Scenario("sign_flip", 0.3, alpha=0.5)).local_round().view
    scale = geometry.norms(given.reference[None])
    errors = [
        autoencoder.error(autoencoder.sketch(given.updates.to(device), scale.to(device))).cpu()
        for autoencoder, device in zip(trained, ("cpu", DEVICE), strict=True)
    ]
    assert trained[1].signs.device == DEVICE
    torch.testing.assert_close(errors[1], errors[0], atol=1e-5, rtol=0.2 if REAL else 1e-3)


@pytest.mark.parametrize(
    ("weighting", "reads"), [(TrustWeighting(), 1), (TrustWeighting("median_or_reference", sybil_exponent=2), 2)]
)
def test_trust_weighting_reads_the_roots_weight_and_who_is_discounted(gpu, normal, weighting, reads):
    updates = normal(6, 50)
    updates[4:] = updates[3]  # three who send the same, and are discounted if they must
    reference, trust = normal(50, seed=1), torch.full((6,), 0.5)
    expected = weighting(ServerView(updates, reference=reference), trust)
    view = ServerView(updates.to(DEVICE), reference=reference.to(DEVICE))
    assert not view.rejected.any()
    forget_reads(gpu)
    found = weighting(view, trust.to(DEVICE))
    assert_reads(gpu, reads)
    assert found.update.device == found.weights.device == DEVICE
    torch.testing.assert_close(found.update.cpu(), expected.update)
    torch.testing.assert_close(found.weights.cpu(), expected.weights)


def test_the_safeguard_reads_the_roots_weight_and_which_candidate_it_is(gpu):
    view = begun("cuda", Scenario("sign_flip", 0.3, alpha=0.5)).local_round().view
    view.fingerprint.raw, view.rejected  # noqa: B018
    forget_reads(gpu)
    aggregate = TrustWeighting(safeguard=True)(view, torch.full((6,), 0.5).to(DEVICE))
    assert aggregate.update.device == DEVICE
    assert_reads(gpu, 2)


@pytest.mark.parametrize("attack", ["none", "sign_flip", "gaussian_noise", "label_flip"])
def test_a_round_with_its_fingerprint_reads_only_who_is_rejected(gpu, attack):
    built = begun("cuda", Scenario(attack, 0.3))
    built.local_round().view.fingerprint  # noqa: B018  (the autoencoder is trained when first asked for)
    forget_reads(gpu)
    round_ = built.local_round()
    assert_reads(gpu, 0)
    rejected = round_.view.rejected
    assert rejected.device.type == round_.malicious.device.type == "cpu"
    assert round_.view.fingerprint.raw.device == DEVICE
    assert_reads(gpu, 1)
    rule = GivenTrust(torch.full((6,), 0.5))
    built.apply(rule(round_.view).update)
    assert_reads(gpu, 2)


@pytest.mark.parametrize("scenario", [Scenario("backdoor" if "backdoor" in attack_names() else "label_flip", 0.3),
                                      Scenario("none", feature_shift=1.0)], ids=["attack", "shift"])  # fmt: skip
def test_scores_are_the_same_on_either_device(gpu, scenario):
    scores = []
    for device in ("cpu", "cuda"):
        built = begun(device, scenario)
        built.apply(built.local_round().view.updates.mean(dim=0))
        metrics = built.evaluate(torch.zeros_like(built.shared)[None], "validation")
        scores.append((*vars(metrics).values(), built.evaluate_personalised("test")))
    for one, other in zip(*scores, strict=True):
        assert other.device == DEVICE
        torch.testing.assert_close(other.cpu(), one, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_an_environment_gives_the_same_episode_on_either_device(gpu):
    episodes = []
    for device in ("cpu", "cuda"):
        env = OptiGradEnv(num_clients=5, rounds=3, device=device, engine="stacked")
        observation, info = env.reset(seed=4, options={"attack": "sign_flip", "malicious_fraction": 0.4})
        seen = [observation, info["validation_loss"]]
        for _ in range(3):
            observation, reward, _, _, info = env.step(env.action_space.low * 0)
            seen += [observation, reward, info["weights"], info["validation_loss"]]
        episodes.append(seen)
    for one, other in zip(*episodes, strict=True):
        torch.testing.assert_close(torch.as_tensor(other), torch.as_tensor(one), atol=1e-3, rtol=1e-3)


def test_every_noise_of_an_attack_is_drawn_on_the_cpu(gpu, normal):
    honest, malicious = normal(6, 40), torch.tensor([True, True, False, False, False, False])
    for colluding in (False, True):
        attack = make_attack("gaussian_noise", colluding=colluding, jitter=0.1)
        sent = [
            attack(updates, malicious, AdversaryView(torch.Generator().manual_seed(1)))
            for updates in (honest, honest.to(DEVICE))
        ]
        torch.testing.assert_close(sent[1].cpu(), sent[0])


def test_auto_picks_an_engine_that_runs_on_the_device():
    network = make_network("small_cnn", (1, 8, 8), 10)
    layout = ParameterLayout(network, local_batchnorm=True)
    assert make_engine("auto", network, layout, torch.device("cuda")).name == "stacked"
    dense = make_network("mlp", (1, 8, 8), 10, hidden=())
    assert (
        make_engine("auto", dense, ParameterLayout(dense, local_batchnorm=True), torch.device("cuda")).name == "linear"
    )
    with pytest.raises(ValueError, match="native engine runs on the CPU, not on cuda: use engine='auto' or 'stacked'"):
        make_engine("native", network, layout, torch.device("cuda"))


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:x", "", "mps"])
def test_an_unknown_device_lists_the_known_ones(name):
    with pytest.raises(ValueError, match=f"device must be 'cpu', 'cuda' or a numbered GPU .*got '{name}'"):
        configure(device=name)


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=r"device='cuda': this PyTorch is built without CUDA; install .* device='cpu'"):
        OptiGradEnv(device="cuda")
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    with pytest.raises(ValueError, match=r"device='cuda': PyTorch finds no NVIDIA GPU; check .*nvidia-smi"):
        configure(device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="device='cuda:2': there are 2 GPUs, numbered from 0; use cuda:0 to cuda:1"):
        configure(device="cuda:2")
    assert check_device("cuda") == torch.device("cuda:0")


def test_a_cell_of_the_benchmark_has_the_same_figures_on_either_device(gpu):
    def figures(device: str) -> list[float]:
        settings = {"device": device, "engine": "stacked"}
        grid = Grid(
            rules=("fedavg", "shapley"),
            attacks=("ipm",),
            malicious_fractions=(0.34,),
            rounds=3,
            num_clients=(4,),
            heterogeneities=("0.5",),
            seeds=(0,),
            settings=settings,
        )
        result = run_cell(grid, grid.cells()[0])
        assert not result.failures, result.failures[0].trace
        return [row["test_accuracy"] for row in result.rows]

    assert figures("cuda") == pytest.approx(figures("cpu"), abs=0.01)
