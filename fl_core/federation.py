"""The round: broadcast, local training, attack, server view; then an update, and the next round."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from math import prod

import torch
from torch import Tensor, nn

from fl_core.aggregation.base import Rule
from fl_core.aggregation.trust import TrustWeighting
from fl_core.aggregation.view import ServerView, receive
from fl_core.attacks import AdversaryView, Attack, LocalData
from fl_core.config import FederationConfig
from fl_core.data import Dataset, Splits, load_dataset, make_splits
from fl_core.data.shift import FeatureShift, draw_shift
from fl_core.data.splits import Root, redraw_root
from fl_core.device import check_device
from fl_core.evaluation import Metrics
from fl_core.fingerprint import AutoencoderOnce, Fingerprinter, HonestSimulator, make_shapley
from fl_core.models import ParameterLayout, make_network
from fl_core.randomness import Purpose, Streams
from fl_core.scenario import Scenario
from fl_core.scoring import Scorer
from fl_core.training import make_engine, make_objective
from fl_core.training.sampling import cyclic

# Pixels of batches that are turned into floats together, 256 MB: a thousand clients train in blocks.
_PIXELS_AT_ONCE = 2**26


@dataclass(frozen=True, eq=False)
class Round:
    """One round between local training and aggregation.

    Attributes:
        view: What the server sees: a row for each of the N clients that take part.
        malicious: (N,) bool, row by row of the view, on the CPU. Ground truth, as is the next: no defence has it.
        attacking: Whether the malicious clients attack in this round.
        participants: (N,) int64, ascending: which client each row is.
    """

    view: ServerView
    malicious: Tensor
    attacking: bool
    participants: Tensor

    @property
    def corrupted(self) -> Tensor:
        """(N,) bool on the CPU: whose update is an attack in this round; before the onset nobody's. Ground truth."""
        return self.malicious & self.attacking


@dataclass(frozen=True, eq=False)
class _Poisoned:
    """Images and labels (F, K, B, ...) of those participants at ``places`` (F,), ascending, who attack their data."""

    places: Tensor
    images: Tensor
    labels: Tensor


class Federation:
    """A simulated federation: clients, adversary and server.

    Call ``reset``, then in turn ``local_round`` and ``apply``. Everything after ``reset`` is a function of the
    configuration, the scenario, the entropy and the updates applied.

    Raises:
        ValueError: An unknown name, or more clients than there is data for.
    """

    def __init__(self, config: FederationConfig) -> None:
        self.config = config
        self.device = check_device(config.device)
        dataset, self._own_splits = _data(config)
        self.dataset = dataset.to(self.device)
        network = self._network(seed=0)
        self.objective = make_objective(config.objective, config.mu, config.loss)
        self.layout = ParameterLayout(network, local_batchnorm=self.objective.local_batchnorm)
        self.engine = make_engine(config.engine, network, self.layout, self.device)
        self._scorer = Scorer(self.engine, self.dataset, self._own_splits)
        self.use_root(Root())
        if config.num_clients > len(self.splits.clients):
            raise ValueError(
                f"num_clients={config.num_clients} is more than the {len(self.splits.clients)} samples "
                f"that data set {config.dataset!r} leaves for clients"
            )

    def use_root(self, root: Root) -> None:
        """Gives the server its root data: its own, or another draw. Whatever is not the server's may be the clients'.

        Args:
            root: What to draw; what it leaves open is the federation's own.

        Raises:
            ValueError: The draw would leave the clients nothing.
        """
        root = self._resolved(root)
        self.splits = self._redrawn(root) if root != self._resolved(Root()) else self._own_splits
        reference, self._utility = self.splits.reference.to(self.device), self.splits.utility.to(self.device)
        images, labels = self.dataset.images(reference), self.dataset.labels[reference]
        self.simulator = HonestSimulator(self.engine, images, labels, self.config.training, self.objective)
        self._root = root

    def check_root(self, root: Root) -> None:
        """Raises a ValueError, if this draw of root data would leave the clients nothing."""
        self._redrawn(self._resolved(root))

    def reset(self, scenario: Scenario, entropy: int) -> None:
        """Begins an episode: partition, malicious clients, random streams; the model is at its initial weights.

        Args:
            scenario: The circumstances.
            entropy: Seed of all randomness of the episode.

        Raises:
            ValueError: The partition cannot be drawn, or the scenario has more clients than the federation.
        """
        streams = Streams(entropy)
        self.scenario, self.entropy = scenario, entropy
        self.attack, self.round = scenario.make_attack(), 0
        self.attack.reset()
        clients = self.num_clients = self._clients_of(scenario)
        if self._resolved(scenario.make_root()) != self._root:
            self.use_root(scenario.make_root())
        self.shards = self._partition(scenario, streams)
        self._shifts = self._draw_shifts(scenario, streams)
        order = streams.numpy(Purpose.MALICIOUS).permutation(clients)
        self.malicious = torch.zeros(clients, dtype=torch.bool)
        self.malicious[torch.from_numpy(order[: scenario.num_malicious(clients)])] = True
        self.shared, local = self.initial_model()
        self._last_change = torch.zeros_like(self.shared)
        # One row a client and a last one for the server, which takes part with its own BatchNorm.
        self.local = local.repeat(clients + 1, 1)
        self._batch_generators = [streams.torch(Purpose.CLIENT, i) for i in range(clients)]
        self._batch_generators.append(streams.torch(Purpose.SERVER))
        self._attack_generator = streams.torch(Purpose.ATTACK)
        self._participation_generator = streams.numpy(Purpose.PARTICIPATION)
        self.participants = torch.arange(clients)
        self.fingerprinter = Fingerprinter(
            self.simulator,
            self.dataset.images(self._utility),
            self.dataset.labels[self._utility],
            self.dataset.num_classes,
            self.autoencoder(self.shared, local),
            make_shapley(self.config.shapley),
            # Not the episode's own streams: who is malicious is drawn from those, and a defence holds this object.
            streams.descend(Purpose.FINGERPRINT),
        )

    def local_round(self, rule: Rule | None = None) -> Round:
        """Local training of the clients that take part and the server, the attack, and what the server then sees.

        Args:
            rule: The rule that is deployed, for attacks that are made against it.

        Raises:
            ValueError: The attack is made against the rule, and none is given.
        """
        self.participants = self._draw_participants()
        malicious = self.malicious[self.participants]
        attacking = self.scenario.under_attack(self.attack, self.round) and bool(malicious.any())
        trained = self._train(torch.cat([self.participants, torch.tensor([self.num_clients])]), attacking)
        # Copies, as in ``server_view``: a slice would lead a defence to the memory behind it, where the attackers'
        # honest training and the clients' own BatchNorm lie; and that there is a slice, or how often a tensor has been
        # written to (``_version``), would say whether anybody attacks.
        updates, reference = trained[:-1], trained[-1].clone()
        see = partial(self.server_view, reference)
        if attacking:
            adversary = AdversaryView(
                self._attack_generator,
                self.round,
                self.shared,
                self._last_change,
                server=see,
                rule=rule,
                clients=self.participants,
            )
            updates = receive(self.attack(updates, malicious, adversary), self.layout.num_shared)
        updates = updates.clone()
        return Round(see(updates), malicious, attacking, self.participants)

    def _draw_participants(self) -> Tensor:
        """Which clients take part in this round, ascending; drawn again if none of them is honest."""
        count = self.scenario.num_participants(self.num_clients)
        if count == self.num_clients:
            return torch.arange(self.num_clients)
        while True:
            drawn = self._participation_generator.choice(self.num_clients, count, replace=False)
            participants = torch.from_numpy(drawn).sort().values
            if not self.malicious[participants].all():
                return participants

    def server_view(self, reference: Tensor, updates: Tensor) -> ServerView:
        """What the server has of updates (N, P) of the participants, with this round's reference update (P,)."""
        clients = self.participants if len(self.participants) < self.num_clients else None
        local, layers = self.local[-1].clone(), self.layout.sizes
        return ServerView(updates, self.shared, reference, local, self.round, self.fingerprinter, clients, layers)

    def _train(self, rows: Tensor, attacking: bool) -> Tensor:
        """Trains participants (indices of clients, the server's N last) and keeps their BatchNorm: updates (M, P)."""
        picks = self._batches(rows)
        updates, local = self.shared.new_empty(len(rows), len(self.shared)), self.local.clone()
        poisoned = self._poisoned(picks, rows) if attacking and self.attack.poisons else None
        pixels_of_row = picks[0].numel() * prod(self.dataset.image_shape)
        for places in torch.arange(len(rows)).split(max(_PIXELS_AT_ONCE // pixels_of_row, 1)):
            block = rows[places]
            images, labels = self._seen(picks[places], block), self.dataset.labels[picks[places]]
            if poisoned is not None:
                mine = torch.isin(poisoned.places, places)
                where = poisoned.places[mine] - places[0]
                images[where], labels[where] = poisoned.images[mine], poisoned.labels[mine]
            updates[places], local[block] = self.engine.train(
                self.shared,
                self.local[block],
                images,
                labels,
                objective=self.objective,
                learning_rate=self.config.training.learning_rate,
            )
        self.local = local
        return updates

    def _poisoned(self, picks: Tensor, rows: Tensor) -> _Poisoned | None:
        """What the malicious ones of all participants (indices of clients) train on; ``None`` if there is none.

        Of all at once, however many are trained at a time: colluding clients may pool what they have.
        """
        # The server is nobody's client: its row, the last, is never malicious.
        places = torch.cat([self.malicious, torch.zeros(1, dtype=torch.bool)])[rows].nonzero()[:, 0]
        if not len(places):
            return None
        ranks = self.malicious.cumsum(dim=0) - 1
        data = LocalData(
            self._seen(picks[places], rows[places]),
            self.dataset.labels[picks[places]],
            ranks[rows[places]],
            self.dataset.num_classes,
            lambda seen: self.engine.logits(self.shared[None], self.local[rows[places[:1]]], seen)[0],
        )
        return _Poisoned(places, *self.attack.poison(data))

    def apply(self, update: Tensor) -> None:
        """Ends the round: adds ``update`` (P,) to the global model; raises ValueError for another shape."""
        if update.shape != self.shared.shape:
            raise ValueError(f"an update has the shape {tuple(self.shared.shape)}, got {tuple(update.shape)}")
        update = update.to(self.shared)  # a rule may have computed in float64
        self.shared = self.shared + update
        self._last_change = update.clone()  # the caller's tensor, which may be written to again
        self.round += 1

    def evaluate(self, updates: Tensor, split: str, at_most: int | None = None) -> Metrics:
        """Scores the global models that candidate updates would make, with the server's own BatchNorm.

        Affine parameters are those of the server's last reference training; statistics are re-estimated on the
        reference half for each model (no labels needed).

        Args:
            updates: (M, P), candidates; a row of zeros is the present model.
            split: ``"validation"`` while an agent is trained, ``"test"`` for reported figures only.
            at_most: Largest number of samples: every second, third, ... of the split; ``None`` for all of them.
        """
        return self._scorer.evaluate(self.shared + updates, self.local[-1], self.simulator.images, split, at_most)

    def attack_success(self, split: str, attack: Attack | None = None) -> float:
        """Share of the inputs with an attack's trigger that the present model takes for what the adversary wants.

        NaN for an attack without a target, or if no sample of the split can carry the trigger.

        Args:
            split: ``"validation"`` or ``"test"``.
            attack: By default the scenario's; another one may be asked about a model that it never met.
        """
        attack = self.attack if attack is None else attack
        return self._scorer.attack_success(attack, self.shared, self.local[-1], self.simulator.images, split)

    def evaluate_personalised(self, split: str, clients: Tensor | None = None) -> Tensor:
        """(M,) accuracy of each of these clients' own model, the present global one with that client's BatchNorm.

        On samples of ``split`` (at most 2,000 of them, evenly spread) mixed as the client's own classes are, seen as
        the client sees them.

        Args:
            split: ``"validation"`` or ``"test"``.
            clients: Their numbers, (M,) int64; ``None`` for all N.
        """
        chosen = range(self.num_clients) if clients is None else clients.tolist()
        shards = [self.shards[i] for i in chosen]
        shifts = [self._shifts[i] for i in chosen] if self._shifts else ()
        local = torch.stack([self.local[i] for i in chosen])
        return self._scorer.personalised(self.shared, local, shards, shifts, split)

    def _clients_of(self, scenario: Scenario) -> int:
        """Number of clients of an episode."""
        if scenario.num_clients is not None and scenario.num_clients > self.config.num_clients:
            raise ValueError(
                f"num_clients={scenario.num_clients} is more than the {self.config.num_clients} clients that the "
                "federation has"
            )
        return scenario.num_clients or self.config.num_clients

    def _resolved(self, root: Root) -> Root:
        """With the federation's own size and bias where it says none."""
        bias = self.config.root_bias if root.bias is None else root.bias
        return Root(root.size or self.config.root, bias, root.draw)

    def _redrawn(self, root: Root) -> Splits:
        return _redrawn(self.config, self.dataset, self._own_splits, root)

    def _partition(self, scenario: Scenario, streams: Streams) -> list[Tensor]:
        pool = self.splits.clients
        shards = scenario.make_partition()(
            self.dataset.labels[pool].cpu().numpy(),
            self.num_clients,
            streams.numpy(Purpose.PARTITION),
            groups=self.dataset.groups_of(pool),
        )
        return [pool[torch.from_numpy(shard)] for shard in shards]

    def _draw_shifts(self, scenario: Scenario, streams: Streams) -> Sequence[FeatureShift]:
        """A shift a client, or none at all. The server's root data is as the data set is."""
        if not scenario.feature_shift:
            return ()
        clients = range(self.num_clients)
        return [draw_shift(streams.numpy(Purpose.FEATURE_SHIFT, i), scenario.feature_shift) for i in clients]

    def _seen(self, picks: Tensor, rows: Tensor) -> Tensor:
        """Images (M, K, B, C, H, W) as these participants see them; the server sees no shift."""
        images = self.dataset.images(picks)
        for place, row in enumerate(rows.tolist() if self._shifts else ()):
            if row < self.num_clients:
                images[place] = self._shifts[row](images[place])
        return images

    def _network(self, seed: int) -> nn.Module:
        config = self.config
        shape, classes = self.dataset.image_shape, self.dataset.num_classes
        return make_network(config.network, shape, classes, seed, **dict(config.network_options))

    def initial_model(self) -> tuple[Tensor, Tensor]:
        """The federation's initial weights: shared (P,) and local (L,).

        They belong to the federation, as the root data does, not to the episode: the autoencoder that knows honest
        updates has learned them along a run from these weights.
        """
        seed = int(Streams(self.config.split_seed).numpy(Purpose.MODEL).integers(2**31))
        return self.layout.initial(self._network(seed).to(self.device))

    def autoencoder(self, shared: Tensor, local: Tensor) -> AutoencoderOnce:
        """What knows honest updates of this data and network, from the initial model (P,) and (L,) on.

        The same for every number of clients, weighting and Shapley estimator.
        """
        seen = replace(self.config, num_clients=1, weighting=TrustWeighting(), shapley="surrogate")
        key = sha256(repr((type(self).__name__, seen, self._root)).encode()).hexdigest()
        seed = Streams(seen.split_seed).seed(Purpose.AUTOENCODER)
        return AutoencoderOnce(key, self.simulator, shared, local, seed, seen.simulated_rounds)

    def _batches(self, rows: Tensor) -> Tensor:
        """(M, K, B) indices into the data set: each participant's shard permuted and taken cyclically."""
        training = self.config.training
        size = training.steps * training.batch_size
        shards = [*self.shards, self.splits.reference]
        batches = [cyclic(shards[row], size, self._batch_generators[row]) for row in rows.tolist()]
        # Drawn on the CPU, and brought to the images in one piece.
        return torch.stack(batches).view(-1, training.steps, training.batch_size).to(self.device)


def _data(config: FederationConfig) -> tuple[Dataset, Splits]:
    options = dict(config.dataset_options)
    dataset = load_dataset(config.dataset, config.data_dir, download=config.download, **options)
    generator = Streams(config.split_seed).numpy(Purpose.SPLIT)
    balanced = make_splits(dataset, generator, root=config.root, validation=config.validation)
    if not config.root_bias:
        return dataset, balanced
    return dataset, _redrawn(config, dataset, balanced, Root(bias=config.root_bias))


def _redrawn(config: FederationConfig, dataset: Dataset, splits: Splits, root: Root) -> Splits:
    return redraw_root(dataset, splits, Streams(config.split_seed).numpy(Purpose.ROOT, root.draw), root)
