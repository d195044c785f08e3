"""What the page "On one GPU" shows: what each Qwen3 profile needs, and what ``opdgeom gpu-check`` found on cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opdgeom_utils.errors import StaleResultsError
from opdgeom_utils.fit.memory import CARD_GB
from opdgeom_utils.gpu_check import PARTS, SCHEMA
from opdgeom_utils.gpu_check.presets import OBJECTIVES, PROFILES, needed, plan_for, qwen3_recipe

COMMAND = "opdgeom gpu-check --out data/gpu/my-card.json"
NOBODY = (
    "**No one has run it on a card yet.** What is said of graphics cards on these pages was counted, and its code was "
    f"run on a processor with small shapes. Whoever has a card can change that with `{COMMAND}`."
)
WORDS = {
    "metrics_agree": "every metric agrees with the processor",
    "student_agrees": "the toy student agrees, forward and backward",
    "diagnostics_0.6b": "diagnostics, one layer of Qwen3-0.6B",
    "diagnostics_8b": "diagnostics, one layer of Qwen3-8B",
    "update_opd": "one OPD update, shapes of Qwen3-0.6B",
    "update_rlvr": "one RLVR update, shapes of Qwen3-0.6B",
    "toy_opd": "short run of the toy, OPD",
    "toy_rlvr": "short run of the toy, RLVR",
    "toy_sft": "short run of the toy, SFT",
}


def with_cards(page: str, folder: Path) -> str:
    """Fill the marks of the page, ``<!-- profiles -->`` and ``<!-- cards -->``; ``folder`` has a JSON for each card.

    Raises
    ------
    StaleResultsError
        If a file is no whole record of a check on a card.
    """
    records = {path.name: _read(path) for path in sorted(folder.glob("*.json"))}
    cards = "\n\n".join(card_text(name, record) for name, record in records.items()) or NOBODY
    return page.replace("<!-- profiles -->", profile_table()).replace("<!-- cards -->", cards)


def profile_table() -> str:
    """Say what each Qwen3 profile needs, by the plan of its recipes, in the GB that cards are sold in (2^30 bytes)."""
    rows = [
        "| profile | teacher | completions at once | SFT | OPD | RLVR | has to be free |",
        "|---|---|---|---|---|---|---|",
    ]
    for profile in reversed(PROFILES):
        recipe = qwen3_recipe(profile, "opd")
        peaks = [f"{plan_for(profile, objective).peak / CARD_GB:.1f}" for objective in OBJECTIVES]
        written = recipe.prompts_per_update * recipe.group_size * recipe.updates_per_rollout
        teacher = str(recipe.teacher).removeprefix("Qwen/")
        rows.append(
            f"| `{profile}` | {teacher} | {written} of {recipe.max_new_tokens} tokens | {' | '.join(peaks)} "
            f"| {needed(profile) / CARD_GB:.1f} |"
        )
    return "\n".join(rows)


def card_text(file: str, record: dict[str, Any]) -> str:
    """Say what a check found: the card, a row for each part, the memory of the updates, and every fault."""
    card, machine, versions = record["card"], record["machine"], record["versions"]
    said = (
        f"### {card['name']}\n\n{card['bytes'] / CARD_GB:.1f} GB, compute capability {card['capability']}, "
        f"{'bf16' if card['bf16'] else 'no bf16 of its own'}; {machine['system']}, torch {versions['torch']}, CUDA "
        f"{versions['cuda']}; {record['started'][:10]}, {record['seconds'] / 60:.0f} minutes; "
        f"{'everything passed' if record['passed'] else 'not everything passed'} (`data/gpu/{file}`)."
    )
    rows = ["| part | passed | seconds | most memory, GB | |", "|---|---|---|---|---|"]
    for name, words in WORDS.items():
        part = record["parts"][name]
        held = "" if part["peak_bytes"] is None else f"{part['peak_bytes'] / CARD_GB:.2f}"
        passed = "yes" if part["passed"] else "**no**"
        rows.append(f"| {words} | {passed} | {part['seconds']:.1f} | {held} | {_more(part['result'])} |")
    faults = [f"- {WORDS[name]}: {fault}" for name in WORDS for fault in record["parts"][name]["faults"]]
    return "\n\n".join([said, "\n".join(rows), *(["\n".join(faults)] if faults else [])])


def _more(result: dict[str, Any]) -> str:
    """Say the numbers of a part that a reader asks for first."""
    if "minutes_of_the_model" in result:
        whole = f"{result['minutes_of_the_model']:.1f} min all {result['layers']}"
        return f"{result['seconds_a_layer']:.1f} s a layer, {whole}"
    if "seconds_learning" in result:
        parts = [f"{name} {size / CARD_GB:.2f}" for name, size in result["bytes"].items() if size]
        return (
            f"`{result['profile']}`, {result['compute']}: writing {result['seconds_writing']:.1f} s, learning "
            f"{result['seconds_learning']:.1f} s; GB: {', '.join(parts)}"
        )
    if "seconds_an_update" in result:
        cosine = f"cosine with the processor {result['cosine_of_updates']:.4f}"
        return f"{result['seconds_an_update']:.2f} s an update; {cosine}"
    return ""


def _read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        whole = (
            record["schema"] == SCHEMA and record["card"] and not record["tiny"] and set(record["parts"]) == set(PARTS)
        )
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise StaleResultsError(
            f"{path} is no whole record of a check on a card (schema {SCHEMA}, true shapes, every part). Make it anew: "
            f"{COMMAND}"
        )
    return record
