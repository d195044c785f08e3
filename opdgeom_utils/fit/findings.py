"""What two sides have in common and what not: one finding for each thing that has to fit, with what to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opdgeom_utils.fit.memory import RANK, Setting, one_copy
from opdgeom_utils.fit.sides import NO_LIMIT, Side
from opdgeom_utils.models import MODELS

Level = Literal["stop", "change", "note", "fine"]
TOO_LARGE = 10  # times the student
SMALLER = 0.9  # of the student, from which on a teacher is said to be the smaller one


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    ``level``: ``stop``: training cannot start; ``change``: it runs, and goes wrong unless this is changed; ``note``: to
    be decided or known; ``fine``.
    ``topic``, ``found``, ``advice``: what was looked at, what was found, what to do (empty where nothing is to be
    done).
    """

    level: Level
    topic: str
    found: str
    advice: str = ""


def name_findings(*names: str | Path) -> list[Finding]:
    """Say where a name is a shipped model's, and a folder here has it too."""
    return [
        Finding(
            "change",
            "name",
            f"{name} is taken for the model that comes with the book, and a folder here has that name too",
            f"write ./{name} for the folder",
        )
        for name in names
        if isinstance(name, str) and "/" not in name and Path(name).is_dir() and (MODELS / name).is_dir()
        and not Path(name).samefile(MODELS / name)
    ]  # fmt: skip


def template_finding(student: Side, teacher: Side) -> Finding:
    """Compare the chat templates by what they make of a short question."""
    topic = "chat template"
    if student.template is None and teacher.template is None:
        return Finding("fine", topic, "neither side has one: prompts are plain text")
    if student.template is None or teacher.template is None:
        lacks, has = ("student", "teacher") if student.template is None else ("teacher", "student")
        return Finding(
            "change",
            topic,
            f"the {has} has one, the {lacks} has none",
            f"write one form of prompt for both ({lacks}_tokenizer.chat_template = {has}_tokenizer.chat_template) and "
            "teach it by a short SFT. Part of a gain will be the form of the answer: measure how many answers parse, "
            "apart from how many are right",
        )
    texts = student.asked(), teacher.asked()
    if texts[0] != texts[1]:
        at = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
        ours, theirs = (text[max(0, at - 10) : at + 30] for text in texts)
        return Finding(
            "change",
            topic,
            f"a short question becomes other texts; they part at ...{ours!r} and ...{theirs!r}",
            "render prompts once, with one of the two templates, and give both sides the same tokens",
        )
    return Finding("fine", topic, "a short question becomes the same text on both sides")


def thinking_finding(student: Side, teacher: Side, setting: Setting) -> Finding:
    """Say who thinks before the answer."""
    words = {
        "no": "does not think",
        "told": "thinks only when told to",
        "switch": "thinks unless told otherwise",
        "always": "always thinks",
    }
    modes = student.thinking, teacher.thinking
    found = f"the student {words[modes[0]]}, the teacher {words[modes[1]]} (by the chat templates)"
    if modes == ("no", "no"):
        return Finding("fine", "thinking mode", found)
    switch = f"{student.switch or teacher.switch}=False"
    if student.switch and teacher.switch not in (None, student.switch):
        switch += f" (student) and {teacher.switch}=False (teacher)"
    if not {"always", "switch"} & {*modes}:
        return Finding("note", "thinking mode", found, f"leave thoughts off on both sides: {switch}")
    if "always" in modes:
        advice = "take a teacher that answers at once, or a student with the same template, and leave room for thoughts"
    else:
        advice = f"render prompts with {switch} on both sides (TRL: chat_template_kwargs), or leave room"
    level: Level = "note" if modes[0] == modes[1] else "change"
    return Finding(level, "thinking mode", found, f"{advice}: completions may have {setting.completion_tokens} tokens")


def length_finding(student: Side, teacher: Side, setting: Setting) -> Finding:
    """Compare the longest text with what both sides can read."""
    limits = {"student": student.longest or NO_LIMIT, "teacher": teacher.longest or NO_LIMIT}
    said = " and ".join(f"{limit:,}" if limit < NO_LIMIT else "any number of" for limit in limits.values())
    found = f"student and teacher read {said} tokens; prompt and completion have up to {setting.tokens:,}"
    if setting.tokens > min(limits.values()):
        least = min(limits.values())
        room = least - setting.prompt_tokens
        advice = f"complete at most {room:,} tokens"
        if room <= 0:
            advice = f"prompt and completion together have at most {least:,}, such as {least // 2:,} and {least // 2:,}"
        return Finding("stop", "lengths", found, advice)
    return Finding("fine", "lengths", found)


def size_finding(student: Side, teacher: Side) -> Finding:
    """Compare the numbers of parameters."""
    if student.folder and student.folder == teacher.folder:
        return Finding(
            "change",
            "teacher",
            "student and teacher are the same files",
            "a model agrees with itself, and nothing is learned; give another teacher, unless it will read more than "
            "the student does, such as a solution",
        )
    ratio = teacher.n_parameters / student.n_parameters
    found = f"the teacher has {ratio:.{1 if ratio >= 1 else 2}f} times the student's parameters"
    if ratio < SMALLER:
        return Finding("note", "teacher", found, "the order is STUDENT TEACHER; are the two exchanged?")
    if ratio > TOO_LARGE:
        return Finding(
            "change",
            "teacher",
            found,
            "a larger teacher can teach less; others used 3 to 8 times. Try a smaller one of the family beside it, or "
            "a teacher trained from the student",
        )
    return Finding("fine", "teacher", found)


def notes(student: Side, teacher: Side, setting: Setting) -> list[Finding]:
    """Say what files do not show and users stumble over: size of the logits, rate, quantised weights."""
    rate = "1e-4 for a LoRA" if setting.lora_rank else f"2e-5 to 5e-5 (a LoRA of rank {RANK}: 1e-4)"
    found = [Finding("note", "learning rate", f"others started small models at {rate}; TRL's default is 1e-6")]
    if student.rows > student.config.hidden_size:
        logits = Finding(
            "note",
            "logits",
            f"one fp32 copy for {setting.sequences} x {setting.completion_tokens} tokens is "
            f"{one_copy(student, setting) / 1e9:.2f} GB, {student.rows / student.config.hidden_size:.0f} times the "
            "hidden states",
            "keep hidden states and take the loss over the whole vocabulary in chunks; the reverse KL of the k most "
            "likely tokens alone was unstable for others",
        )
        found.insert(0, logits)
    for side in (student, teacher):
        if side.quantised:
            stops = side is student and setting.lora_rank is None
            found.append(
                Finding(
                    "stop" if stops else "note",
                    "quantised weights",
                    f"{side.name} is stored in fewer than 16 bits and counted here as if it were not",
                    "what is quantised cannot be trained in full: take a student's original weights, give them 16 bits "
                    "as they are loaded, or train a LoRA",
                )
            )
    if student.stacked and setting.lora_rank:
        found.append(
            Finding(
                "note",
                "experts",
                f"the LoRA is counted on {student.name}'s linear maps; its experts lie in stacks, and none is counted",
                "PEFT's all-linear adapts them too in some families, which takes many times more: name the modules "
                "(target_modules)",
            )
        )
    return found
