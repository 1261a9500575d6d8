"""The rules as data: thresholds with their history, and what the paper says of each claim."""

import csv
import io
from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def rules() -> dict[str, Any]:
    """Return the file of rules: version, changes, tolerances, and each claim's limits."""
    return yaml.safe_load(resources.files(__package__).joinpath("rules.yaml").read_text())


@cache
def claims() -> dict[int, dict[str, str]]:
    """Return of each claim: text, needs, the paper's numbers, what its tables say, answer."""
    text = resources.files(__package__).joinpath("claims.csv").read_text()
    return {int(row["number"]): row for row in csv.DictReader(io.StringIO(text, newline=""))}


def tolerance(name: str) -> float:
    """Return a tolerance by its name."""
    return float(rules()["tolerances"][name])


def bounds(number: int, who: str = "") -> tuple[float, float]:
    """Return between which values a claim's figure (that of one defense) has to lie."""
    rule = rules()["limits"][number]
    rule = rule[who] if who else rule
    if "about" in rule:
        return rule["about"] - rule["by"], rule["about"] + rule["by"]
    return within(rule.get("at_least", float("-inf")), rule.get("at_most", float("inf")))


def within(low: float = float("-inf"), high: float = float("inf")) -> tuple[float, float]:
    """Return bounds, open on a side where nothing is given."""
    return float(low), float(high)


def told(limits: tuple[float, float]) -> str:
    """Return bounds in words."""
    low, high = limits
    if low == float("-inf"):
        return f"at most {high:g}"
    return f"at least {low:g}" if high == float("inf") else f"{low:g} to {high:g}"
