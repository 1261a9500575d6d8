"""Compare budgets and starts of BTI's inversion: `python -m tests.benchmarks.inversion TREE CSV`.

TREE is an ImageFolder tree of CIFAR-10. Victims and inversions are kept beside the CSV, which gets
one row an inversion. A row that it holds is not computed again: a run that was killed goes on where
it was, and rows may be chosen (`--attacks blended --seeds 0 --draws 0 --variants authors`). Without
arguments it prints the table of what is kept.
"""

import argparse
import csv
import itertools
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from ppr_core.attacks import ATTACKS, Trigger
from ppr_core.config import derive
from ppr_core.data import load
from ppr_core.data.images import to_float
from ppr_core.data.splits import reserve
from ppr_core.defenses import Bti, Pam
from ppr_core.defenses.sources.inversion import Inversion
from ppr_core.defenses.sources.residual import ResidualInversion
from ppr_core.defenses.sources.unet import within
from ppr_core.method import Cost, measuring
from ppr_core.metrics import evaluate, triggered
from ppr_core.models import build
from ppr_core.reactivation.retuning import Retuning
from ppr_core.training.fit import fit
from tests.benchmarks.scaled import NAMES, RESULTS, number

SHORT = {"batch_size": 32, "crop": 0}
TARGETS = {0: 0, 1: 3, 2: 7}  # by the victim's seed
EPOCHS = 12


class ScaledInversion(Inversion):
    """The authors' generator, pre-trained as theirs; the search scales its change to the bound."""

    def reverse(self, generator, model):
        bound = 0.999 * self.norm_bound
        return lambda images: images + within(generator(images).float() - images, bound)

    def _pretrain(self, *args):
        Inversion(**self.model_dump())._pretrain(*args)


class KeptInversion(Inversion):
    """The authors' search from a generator that is pre-trained on images alone, without a victim.

    Such a start depends on the defender's images and the seed only: it is computed once for a
    data set. Its seconds are those of the first victim, which pays for it.
    """

    def _pretrain(self, generator, frozen, data, rng):
        def loss(pixels, labels):
            images = frozen.normalise(pixels)
            return F.mse_loss(generator(images), images)

        clock = time.process_time()
        fit(generator, data, self.pretrain, rng=rng, loss=loss)
        print(f"a start without the victim: {time.process_time() - clock:.0f} CPU seconds")


def budget(kind, pretrain, decouple, generate):
    """Return an inversion of so many steps; its generator is as wide as in the studies."""
    steps = {"pretrain": pretrain, "decouple": decouple, "generate": generate}
    groups = {name: {"steps": count, **SHORT} for name, count in steps.items()}
    return kind(width=8, regenerate_each_round=False, **groups)


VARIANTS = {
    "studies": budget(Inversion, 235, 140, 376),
    "authors": budget(Inversion, 1000, 400, 600),
    "residual": budget(ResidualInversion, 0, 140, 120),
    "residual_longer": budget(ResidualInversion, 0, 140, 376),
    "scaled": budget(ScaledInversion, 235, 140, 120),
    "kept": budget(KeptInversion, 1000, 400, 600),
}

STARTS = {  # as the table names the variants
    "studies": "pre-trained, 235/140/376",
    "authors": "pre-trained, 1000/400/600",
    "residual": "bounded, 0/140/120",
    "residual_longer": "bounded, 0/140/376",
    "scaled": "pre-trained, then bounded, 235/140/120",
    "kept": "pre-trained without the victim, 1000/400/600",
}


class Case:
    """One victim: its model, the defender's images, and how RA and the test see it."""

    def __init__(self, images, attack, seed, folder):
        self.images, self.seed, target = images, seed, TARGETS[seed]
        training = {"epochs": EPOCHS, "crop": 0}
        self.attack = ATTACKS[attack](poison_rate=0.1, target=target, training=training)
        self.trigger = Trigger(self.attack, {})
        self.stamped = triggered(images.test, self.trigger, target)
        self.tune = reserve(images.train, 1875, 0.2, seed).tune
        self.model = self.victim(folder / f"{attack}-{seed}.safetensors")

    def victim(self, path):
        """Read the victim, or train and keep it."""
        model = build({"name": "resnet18", "width": 16}, 10, seed=self.seed)
        if not path.exists():
            rng = torch.Generator().manual_seed(self.seed)
            trained = self.attack(model, self.images.train, rng=rng).model
            save_file({k: v.contiguous() for k, v in trained.state_dict().items()}, path)
        model.load_state_dict(load_file(path))
        return model.eval()

    def row(self, inversion, draw):
        """Return what an inversion finds and costs, and what BTI and PAM make of it."""
        rng = derive(self.seed, "prepare", *([draw] if draw else []))
        clock, cost = time.process_time(), Cost()
        with measuring(self.model, cost):
            state = inversion.invert(self.model, self.tune, rng=rng, state={})
        spent = time.process_time() - clock
        found = inversion.findings(state)
        row = {"right": found["label"] == self.attack.target, "votes": found["label_votes"]}
        row |= {name: found[name] for name in ("start_error", "norm_share")}
        row |= {"cosine": self.cosine(inversion, state), "cpu_seconds": spent}
        row |= {"forward": cost.forward, "backward": cost.backward}
        again = inversion.replace(
            regenerate_each_round=True
        )  # in BTI's second round, as in studies
        for name, method in (
            ("bti", Bti(rounds=2, inversion=again, tuning={"epochs": 6, **SHORT})),
            ("pam", Pam(rounds=2, inversion=inversion, tuning={"epochs": 6, **SHORT}, rho=1.0)),
        ):
            rng = derive(self.seed, "defense", type(method).__name__, *([draw] if draw else []))
            purified = method(self.model, self.tune, rng=rng, state=state).model
            for stage, model in (("o", purified), ("p", self.retuned(purified))):
                for figure, value in evaluate(model, self.images.test, self.stamped).items():
                    row[f"{name}_{stage}_{figure}"] = value
        return row

    def retuned(self, model):
        """Return the model after RA."""
        drawn = self.attack.poison(self.images.train, seed=self.seed, state={})
        poisons = drawn.data.subset(drawn.indices[drawn.original != self.attack.target])
        method = Retuning(share=0.05, poisoned=10, schedule={"crop": 0})
        rng = derive(self.seed, "retuning")
        return method(model, self.images.train, rng=rng, poisons=poisons).model

    @torch.no_grad()
    def cosine(self, inversion, state):
        """Return the cosine of the mean feature moves by the trigger found and the real one."""
        kept = self.images.test.subset(self.images.test.labels != self.attack.target).spread(450)
        pixels, change = to_float(kept.images), inversion.trigger(self.model, state, None)
        shown = (pixels, change(pixels), to_float(self.trigger(kept.images)))
        features = [self.model.features_of(self.model.normalise(p)).mean((0, 2, 3)) for p in shown]
        return float(F.cosine_similarity(*(f - features[0] for f in features[1:]), dim=0))


def span(values):
    """Return the mean of some percentages, with the lowest and highest of several."""
    mean = number(values.mean())
    return mean if len(values) == 1 else f"{mean} [{values.min():.0f}, {values.max():.0f}]"


def table():
    """Return the Markdown table of the rows that are kept, a line an attack and start."""
    heads = ["attack", "start, steps", "victims", "inversions", "label right"]
    heads += ["idle steps", "cosine"]
    heads += ["seconds", "BTI: O-ASR", "P-ASR", "PAM rho 1: O-ASR", "P-ASR", "C-Acc"]
    lines = [f"| {' | '.join(heads)} |", "|---|---|" + "---:|" * (len(heads) - 2)]
    rows = pd.read_csv(RESULTS / "inversion.csv")
    for attack, variant in itertools.product(NAMES, STARTS):
        here = rows[(rows["attack"] == attack) & (rows["variant"] == variant)]
        if here.empty:
            continue
        cells = [NAMES[attack], STARTS[variant], here["seed"].nunique(), len(here)]
        cells += [int(here["right"].sum()), f"{100 * here['norm_share'].mean():.0f} %"]
        cells += [f"{here['cosine'].mean():.2f}", f"{here['cpu_seconds'].mean():.0f}"]
        cells += [span(here[f"bti_{stage}_asr"]) for stage in "op"]
        cells += [span(here[f"pam_{stage}_asr"]) for stage in "op"]
        cells.append(span(here["pam_o_c_acc"]))
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main():
    """Compute the rows that are asked for and missing; without arguments, print those kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tree", type=Path, nargs="?")
    parser.add_argument("csv", type=Path, nargs="?")
    parser.add_argument("--attacks", nargs="+", default=["badnet", "blended"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--draws", nargs="+", type=int, default=[0, 1], help="of the generator")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    asked = parser.parse_args()
    if asked.csv is None:
        print(table())
        return
    folder = asked.csv.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"name": "folder", "path": str(asked.tree.absolute()), "train": 20000, "test": 2000}
    images = load(wanted, folder)
    for attack, seed in itertools.product(asked.attacks, asked.seeds):
        case = Case(images, attack, seed, folder)
        for draw, variant in itertools.product(asked.draws, asked.variants):
            row = {"attack": attack, "seed": seed, "target": TARGETS[seed]}
            row |= {"epochs": EPOCHS, "draw": draw, "variant": variant}
            held = list(csv.DictReader(asked.csv.open())) if asked.csv.exists() else []
            if any(all(old[name] == str(row[name]) for name in row) for old in held):
                continue
            row |= case.row(VARIANTS[variant], draw)
            with asked.csv.open("a") as file:
                writer = csv.DictWriter(file, list(row))
                if not held:
                    writer.writeheader()
                writer.writerow(row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
