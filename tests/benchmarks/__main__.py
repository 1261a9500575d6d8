"""Print every benchmark: `python -m tests.benchmarks [name ...]`."""

import sys

from tests.benchmarks import attacks, defenses, paths, store, training
from tests.benchmarks.timing import heading

ALL = {
    "training": training.main,
    "attacks": attacks.main,
    "defenses": defenses.main,
    "paths": paths.main,
    "store": store.main,
}

for name in sys.argv[1:] or ALL:
    heading(name)
    ALL[name]()
