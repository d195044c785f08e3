"""Figures of the toy world: accuracy by family, and the credit of every token of one completion."""

from __future__ import annotations

import altair as alt
import pandas as pd
from scipy.stats import binomtest

from opdgeom_utils.charts.axes import QUARTERS
from opdgeom_utils.charts.palette import Figure, coloured, in_order, shaped, tips
from opdgeom_utils.charts.seed_points import figure, known, need
from opdgeom_utils.intervals import number
from opdgeom_utils.vocabulary import OBJECTIVES, label

MODELS = ("base", "anchor", "teacher")
CREDIT_TICKS = [-20, -10, -5, -2, -1, 0, 1, 2, 5]


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """Return the 95% Wilson interval of a share seen in ``n`` trials.

    >>> [round(end, 3) for end in wilson_interval(0.5, 4)]
    [0.15, 0.85]
    """
    found = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


@figure
def accuracy_by_family(table: pd.DataFrame) -> Figure:
    """Draw one mark for each model and family, with a 95% interval over prompts.

    ``table``: from :func:`opdgeom_utils.evaluation.accuracy_table`: ``model, domain, family, greedy, sampled,
    n_prompts``.
    """
    need(table, ["model", "domain", "family", "greedy", "sampled", "n_prompts"])
    rows = known(table, "sampled", "sampled accuracy")
    ends = [wilson_interval(p, n) for p, n in zip(rows["sampled"], rows["n_prompts"], strict=True)]
    rows = rows.assign(low=[low for low, _ in ends], high=[high for _, high in ends])
    names = [name for name in MODELS if name in set(rows["model"])]
    order = rows.drop_duplicates("family").sort_values(["domain", "family"])["family"].tolist()
    means = rows.groupby("model")["sampled"].agg("mean").to_dict()
    x = alt.X("sampled:Q", title="sampled accuracy").axis(format=".0%", values=QUARTERS).scale(domain=[0, 1])
    shares = [alt.Tooltip(f"{c}:Q", format=".1%") for c in ("sampled", "low", "high", "greedy")]
    base = alt.Chart(rows).encode(y=alt.Y("family:N", sort=order, title=None), color=coloured("model", names))
    whiskers = base.mark_rule(opacity=0.6).encode(x=alt.X("low:Q", title="sampled accuracy"), x2="high:Q")
    marks = base.mark_point(filled=True, size=70, opacity=1).encode(
        x=x, shape=shaped("model", names), tooltip=[*tips("model", "domain", "family"), *shares, "n_prompts:Q"]
    )
    said = ", ".join(f"{name} {number(means[name], '.0%')}" for name in names)
    return alt.layer(whiskers, marks).properties(
        width="container",
        height=26 * len(order),
        description=f"Sampled accuracy on held-out prompts, 0 to 100%, one row for each of {len(order)} families, "
        f"code first. Means over families: {said}.",
    )


@figure
def credit_per_token(credit: pd.DataFrame) -> Figure:
    """Draw the credits that the objectives give to every token of one completion, side by side.

    ``credit``: from :func:`opdgeom_utils.chapters.token_credit.credit_table`: ``objective, position, token, credit,
    mistake``.
    """
    credit = known(need(credit, ["objective", "position", "token", "credit", "mistake"]), "credit", "the credit")
    rows = credit.assign(
        place=[f"{p:03d} {t}" for p, t in zip(credit["position"], credit["token"], strict=True)],
        objective=credit["objective"].map(label),
    )
    names = in_order(rows["objective"])
    x = alt.X("place:O", title="the completion, token by token").axis(
        labelExpr="split(datum.label, ' ')[1]", labelAngle=0
    )
    y = alt.Y("credit:Q", title="credit of the token").scale(type="symlog", constant=1, nice=True)
    tip = [*tips("objective"), "position:Q", "token:N", alt.Tooltip("credit:Q", format="+.3~g")]
    base = alt.Chart(rows).encode(x=x, y=y.axis(values=CREDIT_TICKS), color=coloured("objective", names))
    bars = base.mark_bar().encode(xOffset=alt.XOffset("objective:N", sort=names), tooltip=tip)
    zero = alt.Chart(rows).mark_rule(strokeWidth=1, opacity=0.5).encode(y=alt.datum(0))
    wrong = rows.loc[rows["mistake"].astype(bool)].drop_duplicates("place")
    why = alt.Tooltip("position:Q", title="leaves the worked solution at token")
    flag = alt.Chart(wrong).mark_point(shape="triangle-down", filled=True, size=90, color="#CC3311", y=6)
    said = " ".join(_credit_words(credit, objective) for objective in OBJECTIVES)
    return alt.layer(zero, bars, flag.encode(x="place:O", tooltip=[why])).properties(
        width="container",
        height=260,
        description=f"Bars of the credit of each of {rows['position'].nunique()} tokens of one wrong completion. "
        f"{said} A triangle marks the first error.",
    )


def _credit_words(credit: pd.DataFrame, objective: str) -> str:
    given = credit.loc[credit["objective"] == objective, "credit"]
    if given.empty:
        return ""
    low, high = (number(float(end), "+.2f") for end in (given.min(), given.max()))
    said = f"{low} on each" if given.min() == given.max() else f"from {low} to {high}"
    return f"{label(objective)}: {said}."
