"""What the book's things are called, once: metrics, objectives and nulls.

A metric, its column, its entry in the glossary and its axis are the same words, from one record. To add one, write its
:class:`Metric` here and, where a pair of matrices has it, its function in
:data:`opdgeom_utils.diagnose.matrix_rows.FURTHER`; labels, formats, axes, columns and the glossary follow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from opdgeom_utils.records import Metric, Null, Objective


def _angle(name: str, words: str, definition: str = "", *, compared: bool = False) -> Metric:
    return Metric(
        name, words, definition, "principal angle", unit="degrees", logarithmic=True, per_matrix=True,
        nulls=("shuffled", "random", "identical"), compared=compared,
    )  # fmt: skip


_OF_MATRICES = (
    Metric(
        "update_sparsity", "update sparsity",
        "share of entries that did not change visibly. 1 means that nothing is to be seen, 0 that every entry moved. "
        "Averages weigh each matrix by its number of entries.",
        percent=True, nulls=("shuffled", "random"), per_matrix=True, compared=True,
    ),
    Metric(
        "update_norm", "norm of the update",
        "Frobenius norm of the update of a matrix; `total_norm` is that of all matrices together, and `relative_norm` "
        "the same divided by the norm of $W_0$.",
        per_matrix=True,
    ),
    _angle(
        "left_angle_max_deg", "left largest angle",
        "how far the leading $k$-dimensional singular space of $W_+$ is turned from that of $W_0$, in degrees, 0 to "
        "90. There are $k$ angles; their mean and their maximum are kept. Left spaces hold outputs, right spaces "
        "inputs.",
    ),
    _angle("left_angle_mean_deg", "left mean angle", compared=True),
    _angle("right_angle_max_deg", "right largest angle"),
    _angle("right_angle_mean_deg", "right mean angle", compared=True),
    Metric(
        "normalized_spectral_shift", "normalized spectral shift",
        "how far the singular values moved, $\\lVert \\sigma(W_+) - \\sigma(W_0) \\rVert_2 / \\lVert \\sigma(W_0) "
        "\\rVert_2$. 0 means that they are the same. Weight decay alone moves all of them by its own share.",
        logarithmic=True, nulls=("shuffled", "random"), per_matrix=True, compared=True,
    ),
    Metric(
        "principal_overlap", "principal-mask overlap",
        "share of the update mask that lies in the {term}`principal mask`. Chance is $\\alpha$.",
        percent=True, nulls=("shuffled", "random"), per_matrix=True, compared=True,
    ),
    Metric(
        "low_magnitude_overlap", "low-magnitude overlap",
        "share of the update mask that lies in the {term}`low-magnitude mask`. Chance is $\\alpha$.",
        percent=True, nulls=("shuffled", "random"), per_matrix=True, compared=True,
    ),
    Metric(
        "stable_rank", "stable rank",
        "$\\lVert \\Delta W \\rVert_F^2 / \\lVert \\Delta W \\rVert_2^2$. Roughly, how many directions the update "
        "uses: 1 if it uses one, $n$ if it uses $n$ equally. Measured in fp32; `stable_rank_bf16` is that of the "
        "rounded update.",
        nulls=("shuffled", "random"), per_matrix=True,
    ),
    Metric(
        "hill", "Hill estimate",
        "how fast the largest singular values of an update fall off. Small means a heavy tail: a few that dominate.",
        per_matrix=True,
    ),
    Metric("stable_rank_bf16", "stable rank as bf16 shows it", entry="stable rank", per_matrix=True),
)  # fmt: skip
_OF_RUNS = (
    Metric("total_norm", "norm of the whole update", entry="norm of the update"),
    Metric("relative_norm", "norm of the update / of the weights", entry="norm of the update"),
    Metric(
        "walk_ratio", "walk ratio",
        "root mean square of an update's entries over that of Adam fed with noise along the same schedule. 1 is a "
        "walk. It knows amounts, no directions.",
    ),
    Metric(
        "coherence", "coherence",
        "share of each squared step that would have to be signal, the same at every update, for an update to be as "
        "long as it is: $(\\text{rms}^2 - s^2) / (B^2 - s^2)$ with $s$ the walk of noise and $B$ the sum of the "
        "rates. 0 is a walk, 1 a straight line.",
        percent=True,
    ),
    Metric(
        "noise_sparsity", "sparsity of noise",
        "{term}`update sparsity` that Adam fed with noise is expected to leave, from the schedule and the sizes of "
        "the weights alone.",
        percent=True,
    ),
    Metric("both_sides_angle_mean_deg", "mean principal angle", entry="principal angle", unit="degrees",
           logarithmic=True),
    Metric("greedy", "greedy accuracy",
           "share of held-out prompts answered rightly when the most likely token is taken each time.", percent=True),
    Metric("sampled", "sampled accuracy",
           "the same with one completion sampled at temperature 1. Accuracy without a further word means this one.",
           percent=True),
    Metric("gain", "accuracy gained",
           "sampled accuracy minus its value at step 0 of the same run, averaged over families.", percent=True),
    Metric("reward", "reward", percent=True),
    Metric(
        "reverse_kl_sampled", "reverse KL to the teacher, sampled tokens",
        "$r_t = \\log p_{\\text{student}}(y_t) - \\log p_{\\text{teacher}}(y_t)$ at the token that was sampled, in "
        "nats. Its average over the student's own samples is the reverse Kullback-Leibler divergence; one sample may "
        "be negative.",
        "reverse KL, sampled", unit="nats",
    ),
    Metric(
        "reverse_kl_full_vocab", "reverse KL to the teacher, full vocabulary",
        "the same divergence at one position, summed exactly over the vocabulary. Never negative.",
        "reverse KL, full vocabulary", unit="nats",
    ),
    Metric("kl_to_anchor", "KL to the anchor", unit="nats"),
    Metric("entropy", "entropy", "how undecided the student is about the next token, in nats; 0 when it is sure.",
           unit="nats"),
    Metric("clip_rate", "clip rate", "share of tokens whose probability ratio the loss held back, 0 to 1.",
           percent=True),
    Metric("grad_norm", "norm of the gradient"),
    Metric("grad_clipped", "grad clipped", percent=True),
)  # fmt: skip
_OF_PATHS = (
    Metric(
        "sim_to_end", "similarity to the end",
        "$\\lVert V_K(t)^\\top V_K(\\text{end}) \\rVert_F^2 / K$: how much of the leading $K$-dimensional singular "
        "space of the final update the update after $t$ steps has already. 1 means the same space, 0 that they share "
        "nothing. Right spaces hold inputs, left spaces outputs. `sim_consecutive` is the same number for a "
        "{term}`window` and the one before it, `overlap_activations` for the right space of an update and that of the "
        "layer's inputs.",
        "Sim_K",
    ),
    Metric("sim_consecutive", "similarity to the window before", entry="Sim_K"),
    Metric("overlap_activations", "overlap with the inputs", entry="Sim_K"),
    Metric(
        "captured_share", "share of the step captured",
        "share of the squared norm of a later step, from one checkpoint to the next, that lies inside the early "
        "space. 0 to 1. A random step has $K/n$ of $n$ directions. It speaks of new steps; a cumulative update "
        "resembles its own end because it is part of it.",
        "captured share",
    ),
    Metric("overlap", "overlap", "the same number as Sim_K, between the updates of two different runs."),
    Metric(
        "update_cosine", "cosine of two updates",
        "inner product of two updates over the product of their norms, all entries together. 1 where they point the "
        "same way, 0 where they have nothing in common. What seeds share comes of objective, data and start.",
    ),
    Metric("singular_value", "singular value"),
    Metric(
        "path_gap", "path gap",
        "mean, over the checkpoints that two runs share, of the absolute logarithm of the ratio of their stable "
        "ranks. 0.1 is about ten percent.",
        "path distance",
    ),
    Metric(
        "teacher_distance", "distance to the teacher",
        "full-vocabulary reverse KL of student to teacher, mean over the tokens of fixed held-out text that the "
        "anchor wrote, in nats. 0 for the teacher itself.",
        unit="nats",
    ),
    Metric(
        "update_inside", "update inside",
        "share of the squared norm of a realised {term}`optimiser step` that lies in the space its run is held in, 0 "
        "to 1, mean over the projected updates. An update without direction has $K$ over the number of inputs.",
        percent=True,
    ),
    Metric(
        "kept", "progress kept",
        "what a run held in a space gained between the start of its projection and its end, divided by what the free "
        "run of the same seed gained between the same two updates. 1: nothing was lost; 0: nothing was learned.",
        percent=True,
    ),
    Metric(
        "moment_alignment", "overlap of moments",
        "how much the leading spaces of two second moments share, as Sim_K.",
    ),
    Metric(
        "moment_fit", "explained share",
        "how much of a second moment's squared norm a prediction explains ($R^2$). 1 is exact, 0 no better than "
        "nothing, negative worse. Not centred: a multiple of the identity already explains something.",
    ),
)  # fmt: skip
METRICS: dict[str, Metric] = {metric.name: metric for metric in (*_OF_MATRICES, *_OF_RUNS, *_OF_PATHS)}
OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective(
            "sft", "SFT",
            "Supervised fine-tuning. Completions come from demonstrations; every token has advantage 1.",
        ),
        Objective(
            "opd", "OPD",
            "On-policy distillation. The student samples the completion, the teacher scores every token; "
            "$a_t = -r_t$.",
        ),
        Objective(
            "rlvr", "RLVR",
            "Reinforcement learning with verifiable rewards. The student samples a group of completions; each token "
            "of a completion has the same advantage, the reward minus the group's mean, divided by the group's "
            "standard deviation.",
        ),
        Objective(
            "control_sft", "control SFT",
            "SFT that starts at the anchor and takes OPD's learning rate and number of updates. It separates the "
            "objective from the size of training.",
        ),
        Objective(
            "control_sft_64", "64-prompt SFT",
            "Control SFT on 64 different prompts an update, as many as RLVR has. It separates RLVR's objective from "
            "its few prompts.",
        ),
        Objective(
            "sft_mismatched", "mismatched SFT",
            "The null objective of SFT. Each prompt comes with the demonstration of another problem of the same family "
            "and level: the form of an answer is there to learn, and nothing of how it follows.",
        ),
        Objective(
            "control_sft_mismatched", "mismatched control",
            "The null objective of control SFT, made in the same way.",
        ),
        Objective(
            "opd_random_credit", "random credit",
            "The null objective of OPD. The student samples and the teacher scores as in OPD; then the credits are "
            "permuted over all tokens of the update and given random signs. Real text, and nothing to learn.",
        ),
        Objective(
            "rlvr_random_reward", "random reward",
            "The null objective of RLVR. The student samples and the verifier rewards as in RLVR; then the rewards are "
            "permuted over all completions of the update.",
        ),
        Objective(
            "opd_full_vocab", "full-vocabulary OPD",
            "On-policy distillation whose loss is the exact divergence over all next tokens at each place of the "
            "student's text, where OPD has one sampled token for it.",
        ),
    )
}  # fmt: skip
NULLS: dict[str, Null] = {
    null.name: null
    for null in (
        Null("shuffled", "shuffled null", "the update permuted inside its matrix"),
        Null("random", "random null", "Gaussian noise of the same norm"),
        Null("identical", "identical null", "a matrix against itself"),
        Null("random_walk", "random walk", "Gaussian steps of the run's own sizes", True),
        Null("random_walk_decaying", "decaying walk", "Gaussian steps whose sizes fall", True),
        Null("adam_random", "Adam on noise", "the run's optimiser on Gaussian gradients", True),
        Null(
            "activations", "noise on real inputs",
            "the same on gradients made of real inputs and random output-side signals", True,
        ),
        Null("shuffled_time", "own steps shuffled", "the run's own windows in another order", True),
        Null("rounding", "rounding noise alone", "what bf16 alone does to a stable rank", True),
    )
}  # fmt: skip
PATH_NULLS = {null.name: null.label for null in NULLS.values() if null.of_path}
ROUNDED = "as bf16 shows it"  # no null: the same update, after rounding
RESCALED = "last update, rescaled"


def metric_of(name: str) -> Metric:
    """Record of a column; one that no record names has its name for words.

    >>> [metric_of(name).title for name in ("left_angle_mean_deg", "update_sparsity", "top_share")]
    ['left mean angle (degrees)', 'update sparsity', 'top share']
    >>> format(0.1234, metric_of("update_sparsity").shown), format(0.1234, metric_of("stable_rank").shown)
    ('12.3%', '0.123')
    """
    return METRICS.get(name, Metric(name, name.replace("_", " ")))


def label(recipe: str) -> str:
    """Name of a recipe on a page: the objective's, and what comes after it in the recipe's name; 3e6 is a rate of 3e-6.

    >>> label("control_sft"), label("rlvr_long"), label("alpha_0.5"), label("opd_rate_3e6")
    ('control SFT', 'RLVR long', 'alpha 0.5', 'OPD at 3e-6')
    """
    known = max((name for name in OBJECTIVES if f"{recipe}_".startswith(f"{name}_")), key=len, default="")
    rest = re.sub(r"_(?:rate_)?(\d)e(\d)$", r" at \1e-\2", recipe.removeprefix(known))
    return (OBJECTIVES[known].label if known else "") + rest.replace("_", " ")


def per_matrix() -> list[str]:
    """Columns that a pair of matrices has, in the order of the tables."""
    return [m.name for m in METRICS.values() if m.per_matrix]


def null_columns() -> list[str]:
    """Columns of the nulls, in the order of the tables: all metrics of the first null, then of the next.

    >>> null_columns()[0], null_columns()[-1]
    ('update_sparsity_shuffled', 'right_angle_mean_deg_identical')
    """
    return [f"{m.name}_{null}" for null in NULLS for m in METRICS.values() if null in m.nulls]


def compared() -> tuple[str, ...]:
    """Metrics by which claims, chapters and reports compare runs: the paper's diagnostics of an update."""
    return tuple(m.name for m in METRICS.values() if m.compared)


def listed(words: Iterable[str]) -> str:
    """Join words as a sentence does.

    >>> listed(["SFT", "OPD", "RLVR"])
    'SFT, OPD and RLVR'
    """
    items = list(words)
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "nothing"
