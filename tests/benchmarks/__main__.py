"""Print every benchmark: `python -m tests.benchmarks [name ...]`; see also `gpu --help`."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before torch

from tests.benchmarks import attacks, defenses, gpu, paths, store, training
from tests.benchmarks.timing import heading

ALL = {
    "training": training.main,
    "attacks": attacks.main,
    "defenses": defenses.main,
    "paths": paths.main,
    "store": store.main,
    "gpu": gpu.main,
}

if sys.argv[1:2] == ["gpu"]:  # takes arguments of its own
    sys.exit(gpu.main(sys.argv[2:]))
for name in sys.argv[1:] or ALL:
    heading(name)
    ALL[name]()
