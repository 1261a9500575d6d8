"""What a panel's figures mean, in one sentence."""

from collections.abc import Sequence

import pandas as pd

from ppr_core.reporting.results import PURIFIED_BELOW, WOKEN_BY

AWAKE = 50.0  # ASR (%) from which a point of the path counts as awake


def of_rho(rho: float, o_asr: float, p_asr: float) -> str:
    """Say what retuning makes of PAM at a rho (ASR in percent)."""
    name = f"PAM at rho {rho:g}"
    if o_asr > PURIFIED_BELOW:
        return f"{name} is not purified: its ASR is {o_asr:.0f} % before anything is done to it."
    if p_asr - o_asr >= WOKEN_BY:
        return (
            f"{name} looks safe (ASR {o_asr:.0f} %), but retuning brings the backdoor back to "
            f"{p_asr:.0f} %: it was asleep, not gone."
        )
    return f"{name} looks safe (ASR {o_asr:.0f} %) and stays so after retuning ({p_asr:.0f} %)."


def gated(name: str, failed: Sequence[str]) -> str:
    """Say that there is no verdict on a model, and why.

    Args:
        name: of the model.
        failed: the checks that it fails, a sentence each.
    """
    return f"No verdict on {name}. {' '.join(failed)}"


def of_epsilon(eps: float, start: float, p_asr: float, control: float | None) -> str:
    """Say what a perturbation of a budget wakes.

    Args:
        eps: the budget, in 1/255.
        start: ASR without a perturbation, percent.
        p_asr: ASR with it.
        control: ASR that the same images have on a clean model; None where it was not asked.
    """
    if start > PURIFIED_BELOW:
        return f"This model is not purified: its ASR is {start:.0f} % without a perturbation."
    if eps == 0:
        return f"Asleep: without a perturbation {start:.0f} % of triggered images hit the target."
    if p_asr - start < WOKEN_BY:
        return f"Still asleep at {eps:g}/255: ASR goes from {start:.0f} to {p_asr:.0f} %."
    woken = f"a perturbation of {eps:g}/255 brings ASR from {start:.0f} to {p_asr:.0f} %"
    if control is None:
        return f"Awake: {woken}. Whether a clean model would follow was not measured."
    if p_asr - control < WOKEN_BY:
        return (
            f"No proof: {woken}, but a clean model follows as well ({control:.0f} %), as it would "
            "under any adversarial attack."
        )
    return (
        f"Awake: {woken}, while a clean model stays at {control:.0f} %. The backdoor was never "
        "gone."
    )


def of_path(t: float, asr: float, points: pd.DataFrame) -> str:
    """Say where on the path from backdoored (0) to purified (1) the backdoor is awake.

    Args:
        t: the position.
        asr: of the model there, percent.
        points: measured `t` and `backdoor_error` (percent); may be empty.
    """
    state = "awake" if asr >= AWAKE else "asleep" if asr <= PURIFIED_BELOW else "half awake"
    here = f"At t = {t:.2f} the backdoor is {state} (ASR {asr:.0f} %)"
    if not len(points):
        return f"{here}."
    points = points[points["batch_norm"] == points["batch_norm"].iloc[0]]
    awake = points.loc[100 - points["backdoor_error"] >= AWAKE, "t"]
    if not len(awake):
        return f"{here}; on this line it is awake nowhere, not even at the backdoored end."
    last = awake.max()
    if last >= 1:
        return f"{here}; it is awake even at the purified end."
    return (
        f"{here}. Coming back from the purified end it wakes at about t = {last:.2f}, "
        f"{100 * (1 - last):.0f} % of the way: the shorter that is, the shallower the sleep."
    )


def of_battery(
    poisons: float, rate: float, own: float | None, clean: float | None, verdict: str
) -> str:
    """Say what retuning on so many poisons at a rate does to a model and to clean ones."""
    if own is None:
        return f"Verdict of the battery: {verdict}."
    samples = f"{poisons:g} poisoned sample{'' if poisons == 1 else 's'}"
    beside = f" and clean models to {clean:.0f} %" if clean is not None else ""
    said = f"At {rate:g} times the paper's learning rate {samples} bring it to {own:.0f} % ASR"
    return f"{said}{beside}. Verdict of the battery: {verdict}."
