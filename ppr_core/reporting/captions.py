"""What a figure of the report shows, in a sentence with its finding."""

from ppr_core.lab.graph import CLEAN, NO_DEFENSE
from ppr_core.reporting import checks, findings, regression, results
from ppr_core.reporting.evidence import Evidence

# Of a figure's file, without its number -> what to see in it.
SEEN = {
    "triggers": "Original, poisoned and triggered images, and the difference, amplified.",
    "training": "C-Acc and ASR while the backdoored models are trained: both rise within epochs.",
    "retuning": "ASR and C-Acc by epoch of RA; epoch 0 is the purified model.",
    "budget": "QRA (the authors' form) over the budget, and what knows nothing of the backdoor.",
    "rivals": "What each way to wake a backdoor reaches.",
    "transfer": "A perturbation learnt on the model of one defense, used on the others.",
    "clean_error": "Clean error on the way from the backdoored to each purified model.",
    "connection": "Backdoor error on the way from each purified model to EP's.",
    "paths": "Backdoor error on the way back from PAM's models, over rho.",
    "epsilon": "QRA (the authors' form) over its budget on the model that shows the finding best.",
    "t": "Errors on the way from the backdoored to that model.",
    "battery": "The worst P-ASR of each arm by poisons; grey where a clean model wakes, too.",
    "wake_counts": "The fewest poisons that wake each model, beside what clean models need.",
    "order": "P-ASR by RA as published and in the worst case; bars span draws and seeds.",
}


def caption(figure: str, evidence: Evidence) -> str:
    """Return the caption of a figure, by the name of its file; its own words if it has none.

    Args:
        figure: such as "2_robustness".
        evidence: what the study's runs say.
    """
    name, rows = figure.partition("_")[2], evidence.cells
    red = checks.listed(rows)
    if name == "robustness":
        said = [line for line in findings.of_robustness(rows) if line not in red]
        return "ASR before and after RA. " + " ".join(said)
    if name == "query" and "q_p_asr" in rows:
        return "QRA. " + " ".join(findings.of_queries(rows, evidence.transfers))
    if name in ("backdoor_error", "predictors") and "path_distance" in rows:
        head = {"backdoor_error": "Backdoor error on the way to each purified model."}
        return " ".join([head.get(name, "P-ASR by distances."), *regression.asleep(rows)])
    if name == "rho":
        return "PAM over rho. " + _over_rho(evidence)
    if name == "trade_off":
        return "C-Acc lost and P-ASR. " + _trade_off(evidence)
    if of_the_paper(figure):
        return f"The paper's Figure {int(name.removeprefix('figure_'))}, from these runs."
    return SEEN.get(name, name.replace("_", " "))


def of_the_paper(figure: str) -> bool:
    """Say whether a figure, by the name of its file, is one of the paper's."""
    return figure.partition("_")[2].startswith("figure_")


def _over_rho(evidence: Evidence) -> str:
    table = results.summary(evidence.cells)
    lines = []
    for attack, grid in table[table["defense"] == "pam"].groupby("attack", sort=False):
        ends = grid.dropna(subset=["rho", "p_asr"]).sort_values("rho")
        if len(ends) > 1:
            first, last = ends.iloc[0], ends.iloc[-1]
            lines.append(
                f"{attack}: from rho {first['rho']:g} to {last['rho']:g} P-ASR goes from "
                f"{first['p_asr']:.0f} to {last['p_asr']:.0f} %, C-Acc from {first['o_c_acc']:.0f} "
                f"to {last['o_c_acc']:.0f} %."
            )
    return " ".join(lines)


def _trade_off(evidence: Evidence) -> str:
    table = results.summary(evidence.cells)
    honest = ~table["oracle"].astype(bool) & ~table["defense"].isin([CLEAN, NO_DEFENSE])
    lines = []
    for attack, rows in table[honest].dropna(subset=["p_asr"]).groupby("attack", sort=False):
        best = rows.sort_values("p_asr").iloc[0]
        lines.append(
            f"{attack}: {results.label(best)} has the lowest P-ASR of those without an oracle, "
            f"{best['p_asr']:.0f} %, at C-Acc {best['o_c_acc']:.0f} %."
        )
    return " ".join(lines)
