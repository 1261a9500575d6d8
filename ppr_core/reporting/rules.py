"""The rules as data: thresholds with their history, and what the paper says of each claim."""

import csv
import io
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import yaml


class Limits(NamedTuple):
    """Between which values a figure has to lie; strictly, where a claim says above or below."""

    low: float = float("-inf")
    high: float = float("inf")
    strict: bool = False


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("claims", name).read_text()


@cache
def rules() -> dict[str, Any]:
    """Return the file of rules: version, changes, thresholds, and each claim's limits."""
    return yaml.safe_load(_read("rules.yaml"))


@cache
def claims() -> dict[int, dict[str, str]]:
    """Return of each claim: text, needs, the paper's numbers, what its tables say, answer."""
    text = io.StringIO(_read("claims.csv"), newline="")
    return {int(row["number"]): row for row in csv.DictReader(text)}


def threshold(name: str) -> float:
    """Return a threshold by its name."""
    return float(rules()["thresholds"][name])


def bounds(number: int, who: str = "") -> Limits:
    """Return between which values a claim's figure (that of one defense) has to lie."""
    rule = rules()["limits"][number]
    rule = rule[who] if who else rule
    if "about" in rule:
        return within(rule["about"] - rule["by"], rule["about"] + rule["by"])
    if "above" in rule:
        return Limits(low=float(rule["above"]), strict=True)
    if "below" in rule:
        return Limits(high=float(rule["below"]), strict=True)
    return within(rule.get("at_least", float("-inf")), rule.get("at_most", float("inf")))


def within(low: float = float("-inf"), high: float = float("inf")) -> Limits:
    """Return bounds, open on a side where nothing is given."""
    return Limits(float(low), float(high))


def told(limits: Limits) -> str:
    """Return bounds in words."""
    low, high, strict = limits
    if low == float("-inf"):
        return f"{'below' if strict else 'at most'} {high:g}"
    if high == float("inf"):
        return f"{'above' if strict else 'at least'} {low:g}"
    return f"{low:g} to {high:g}"
