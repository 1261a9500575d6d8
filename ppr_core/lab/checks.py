"""What is checked of a study before any of it is computed."""

from collections.abc import Iterator
from contextlib import contextmanager

from ppr_core.bench import weights_of
from ppr_core.config import Settings
from ppr_core.data.images import ImageSet
from ppr_core.errors import ConfigError, DataError, need
from ppr_core.lab.graph import CLEAN
from ppr_core.lab.plan import Plan
from ppr_core.models import Network
from ppr_core.models.needs import need_map_sizes
from ppr_core.runtime import session


def check(plan: Plan) -> None:
    """Raise at once where a study cannot do with what it is given.

    Raises:
        DataError: too few images, or ones that an attack cannot stamp.
        ConfigError: trainings that do nothing, crops larger than the images, or defenses that the
            architecture cannot serve.
        CheckpointError: a model made elsewhere that is not of the study's architecture.
    """
    train = plan.images.train
    for label, attack in plan.attacks.items():
        with _named(f"attack {label}"):
            attack.check_data(train)
    need(
        plan.study.reserve <= len(train),
        f"expected a reserve of at most {len(train)} images, got {plan.study.reserve}",
        DataError,
    )
    if plan.made:
        model = plan.setting.build(seed=0)
        for file in plan.made.values():
            weights_of(file, model)
    _check_schedules(plan, train)
    for name, of in plan.measures.items():
        for label, measure in of.items():
            with _named(f"{name} of {label}"):
                for seed in plan.study.seeds:
                    measure.check_images(plan.attacks[label], train, seed)
    bare = plan.setting.model.skeleton(train.num_classes)
    with session(precision=plan.study.precision):
        need_map_sizes(bare, train.size, plan.device)
    _check_defenses(plan, bare)


def _check_schedules(plan: Plan, train: ImageSet) -> None:
    """Raise ConfigError for a training that does nothing, or crops that leave the images."""
    clean = {CLEAN: plan.clean} if plan.has_clean else {}
    for label, attack in {**plan.attacks, **clean}.items():
        need(
            attack.training.total_steps(len(train)) > 0,
            f"{label}: expected a training of at least one step, got {attack.training.epochs} "
            "epochs; set training.epochs",
        )
    methods: list[tuple[str, Settings]] = [*plan.attacks.items(), *clean.items()]
    methods += [(label, defense) for (label, _), defense in plan.defenses.items()]
    methods += [(name, measure) for name, of in plan.measures.items() for measure in of.values()]
    for label, method in methods:
        for name, value in method.flat().items():
            need(
                name.rpartition(".")[2] != "crop" or value < train.size,
                f"{label}.{name}: expected less than the images' side, {train.size}, got {value}",
            )


def _check_defenses(plan: Plan, bare: Network) -> None:
    """Raise ConfigError, naming every defense that the architecture cannot serve."""
    told: dict[str, str] = {}
    held = plan.setting.held(plan.study.seeds[0]).tune
    for (label, _), defense in plan.defenses.items():
        try:
            defense.check(bare, held)
        except ConfigError as error:
            told.setdefault(label, str(error))
    need(
        not told,
        f"expected defenses that apply to {plan.study.model['name']}, got {len(told)} that do "
        f"not; leave out {', '.join(told)}, or mend it: {'; '.join(told.values())}",
    )


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Have errors about the data say whose they are."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{label}: {error}") from None
