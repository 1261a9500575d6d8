"""What stages read: the models, the trigger and the poisons that earlier stages left behind."""

from torch import Tensor

from ppr_core.attacks import Trigger
from ppr_core.data.images import ImageSet
from ppr_core.defenses import Defense
from ppr_core.errors import CheckpointError, StoreError
from ppr_core.lab.dropping import dropped
from ppr_core.lab.graph import Stage
from ppr_core.lab.store import Run, Store
from ppr_core.method import Result
from ppr_core.metrics import triggered
from ppr_core.models.base import Network, check_same_shapes
from ppr_core.weights import under

LEARNT = "trigger."  # what an attack has learnt of its trigger, of its outcome's tensors


class Reader:
    """Reads what the stages of any study left in a store; what was just read stays at hand.

    Args:
        store: where results are looked up.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._read: dict[str, Result] = {}
        self._stamped: dict[str, ImageSet] = {}

    def cached(self, stage: Stage) -> bool:
        """Say whether the store holds this stage's result."""
        return stage.key in self._read or self.store.find(stage.key) is not None

    def result(self, stage: Stage) -> Result:
        """Return a stage's result."""
        if stage.key not in self._read:
            run = self.store.find(stage.key)
            if run is None or dropped(run):
                run = self.compute(stage)
            try:
                result = self.store.load(run)
            except CheckpointError as error:
                result = self.store.load(self.replace(stage, run, error))
            if len(self._read) >= 64:  # a few hundred MB of weights at the most
                self._read.pop(next(iter(self._read)))
            self._read[stage.key] = result
        return self._read[stage.key]

    def compute(self, stage: Stage) -> Run:
        """Return the run of a stage whose tensors the store lacks; who only reads has none.

        Raises:
            StoreError: nothing is computed here.
        """
        raise StoreError(f"expected the stage {stage.name} in {self.store.uri}, got none; run it")

    def replace(self, stage: Stage, run: Run, error: CheckpointError) -> Run:
        """Return another run of a stage whose result is damaged; who only reads has none."""
        raise error

    def model(self, stage: Stage) -> Network:
        """Return the classifier that a stage left behind, in eval mode, on the study's device."""
        model = stage.setting.build(stage.cell.seed)
        if (defense := defense_of(stage)) is not None:
            defense.extend(model)
        weights = under(self.result(stage).tensors, "model.")
        check_same_shapes(weights, model.state_dict())
        model.load_state_dict(weights)
        return model.to(stage.setting.place).eval()

    def trigger(self, stage: Stage) -> Trigger:
        """Return the attacker's trigger for the victim that a stage goes back to."""
        victim = stage.victim
        state: dict[str, Tensor] = {}
        if prepared := victim.parent("prepared"):
            state |= self.result(prepared).tensors
        if self.cached(victim):
            state |= under(self.result(victim).tensors, LEARNT)
        state = {name: tensor.to(stage.setting.place) for name, tensor in state.items()}
        return Trigger(victim.method, state)

    def stamped_test(self, stage: Stage) -> ImageSet:
        """Return the triggered test images of the victim that a stage goes back to."""
        victim = stage.victim
        if victim.key in self._stamped:
            return self._stamped[victim.key]
        trigger = self.trigger(stage)
        test = trigger.attack.stampable(stage.setting.images.test, state=trigger.state)
        stamped = triggered(test, trigger, trigger.target)
        if self.cached(victim):  # before that, an attack may not have learnt its trigger yet
            if len(self._stamped) >= 4:
                self._stamped.pop(next(iter(self._stamped)))
            self._stamped[victim.key] = stamped
        return stamped

    def outside_target(self, stage: Stage) -> tuple[Tensor, Tensor]:
        """Return the test images outside the target class, and the same with the trigger."""
        trigger = self.trigger(stage)
        test = trigger.attack.stampable(stage.setting.images.test, state=trigger.state)
        return test.images[test.labels != trigger.target], self.stamped_test(stage).images

    def training_set(self, stage: Stage) -> ImageSet:
        """Return the training images that a stage's models come from, with their given labels.

        They are the victim's, as its attack left them, or the clean ones where there is no victim.
        """
        victim, train = stage.origin("backdoored"), stage.setting.images.train
        if victim is None:
            return train
        trigger = self.trigger(stage)
        return trigger.attack.poison(train, seed=victim.cell.seed, state=trigger.state).data

    def poisons(self, stage: Stage, *, any_class: bool = False) -> ImageSet:
        """Return the attacker's stamped training images, labelled with the target.

        Args:
            stage: that goes back to the attacker's victim.
            any_class: also those whose true class is the target.
        """
        train, indices = stage.setting.images.train, self.poison_indices(stage)
        return self.trigger(stage).poisons(train, indices, any_class=any_class)

    def query_images(self, stage: Stage) -> ImageSet:
        """Return the triggered training images that QRA draws from, with their true labels.

        Args:
            stage: that goes back to the attacker's victim.
        """
        return self.trigger(stage).query_images(
            stage.setting.images.train, self.poison_indices(stage)
        )

    def poison_indices(self, stage: Stage) -> Tensor:
        """Return which training images the victim's poisons are: as drawn when it was trained."""
        victim = stage.victim
        if victim.file is None:
            return self.result(victim).tensors["poison_indices"]
        # Of a victim made elsewhere no draw is known: the attacker's own poisons are drawn here.
        attack, state = victim.method, self.trigger(stage).state
        train = stage.setting.images.train
        return attack.poison(train, seed=victim.cell.seed, state=state).indices

    def ends(self, *stages: Stage) -> list[Network]:
        """Return the models of a path's ends, each with the layers that the other ones have."""
        models = [self.model(stage) for stage in stages]
        for index, stage in enumerate(stages):
            if (defense := defense_of(stage)) is not None:
                for other in models[:index] + models[index + 1 :]:
                    defense.extend(other)
                    other.to(stage.setting.place).eval()
        return models


def defense_of(stage: Stage) -> Defense | None:
    """Return the defense whose layers the classifier of a stage has; None where it adds none."""
    while stage.kind != "purified" and stage.parents:
        stage = stage.parents[0]
    return stage.method if isinstance(stage.method, Defense) else None
