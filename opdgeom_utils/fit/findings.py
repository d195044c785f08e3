"""What two sides have in common and what not: one finding for each thing that has to fit, with what to do."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from opdgeom_utils.fit.memory import RANK, Setting, one_copy
from opdgeom_utils.fit.sides import NO_LIMIT, Side

Level = Literal["stop", "change", "note", "fine"]
SHOWN = 4  # of what differs
TOO_LARGE = 10  # times the student
NO_PADDING = (
    "has no padding token, and texts of one batch are padded",
    "set tokenizer.pad_token to tokenizer.eos_token or to a token of its own, save the tokenizer, and mask the loss by "
    "the attention mask",
)
PROBE = 'The sum of 1234 and 56.7 is:\n\n  x² = naïve\t{"a": [1]}'


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


def tokens_finding(student: Side, teacher: Side) -> Finding:
    """Say whether an entry of the logits means the same token on both sides."""
    ours, theirs = student.tokens, teacher.tokens
    common = ours.keys() & theirs.keys()
    other = sorted(i for i in common if ours[i] != theirs[i])
    moved = {ours[i] for i in ours.keys() - theirs.keys()} & {theirs[i] for i in theirs.keys() - ours.keys()}
    if other or moved:
        named = [f"{i} is {ours[i]!r} and {theirs[i]!r}" for i in other] or sorted(map(repr, moved))
        return Finding(
            "stop",
            "tokens",
            f"{len(other):,} of {len(common):,} ids mean different tokens, in student and teacher: {_few(named)}",
            "their logits cannot be compared; take a teacher with the student's tokenizer, or a trainer that aligns "
            "texts instead of logits (TRL's GOLD)",
        )
    for side, more, less in ((student, ours, theirs), (teacher, theirs, ours)):
        if only := sorted(more.keys() - less.keys()):
            return Finding(
                "change",
                "tokens",
                f"{len(common):,} tokens agree; {side.name} has {len(only):,} more: "
                f"{_few([f'{i} {more[i]!r}' for i in only])}",
                "compare the logits of the tokens that both have, and give the others no probability on either side",
            )
    cut = [side.tokenizer(PROBE, add_special_tokens=False)["input_ids"] for side in (student, teacher)]
    if cut[0] != cut[1]:
        return Finding(
            "change",
            "tokens",
            f"the {len(ours):,} tokens agree, but texts are cut differently: {PROBE!r} into {len(cut[0])} and "
            f"{len(cut[1])} tokens",
            "encode prompts once, with the student's tokenizer, and let the teacher score these tokens",
        )
    return Finding("fine", "tokens", f"the same {len(ours):,} tokens on both sides, and texts are cut alike")


def rows_finding(student: Side, teacher: Side) -> Finding:
    """Compare the lengths of the logits with each other and with the tokens that there are."""
    for side in (student, teacher):
        if (last := max(side.tokens)) >= side.rows:
            return Finding(
                "stop",
                "vocabulary",
                f"{side.name}: its tokenizer has id {last:,}, its embedding only {side.rows:,} rows",
                "tokenizer and model are not of one training; take the tokenizer that belongs to the weights, or "
                f"resize_token_embeddings({last + 1})",
            )
    used = max(max(student.tokens), max(teacher.tokens)) + 1
    if student.rows != teacher.rows:
        largest = max(student.rows, teacher.rows)
        smaller = "student" if student.rows < teacher.rows else "teacher"
        return Finding(
            "change",
            "vocabulary",
            f"logits of {student.rows:,} and {teacher.rows:,} entries (student, teacher) for {used:,} tokens; the rest "
            "is padding",
            f"compare the first {used:,} entries only. TRL's DistillationTrainer refuses such a pair: call "
            f"{smaller}.resize_token_embeddings({largest}) first",
        )
    return Finding("fine", "vocabulary", f"logits of {student.rows:,} entries on both sides for {used:,} tokens")


def end_findings(student: Side, teacher: Side) -> list[Finding]:
    """Say which token ends a text on each side, and whether the student's padding hides it."""
    ends = [{*side.stops} | ({side.end} if side.end is not None else set()) for side in (student, teacher)]
    said = [f"stops at {_named(side, side.stops)}, its tokenizer writes {_named(side, [side.end])}" for side in
            (student, teacher)]  # fmt: skip
    both = sorted(set.union(*ends))
    if not all(ends):
        side = student if not ends[0] else teacher
        found = Finding(
            "change",
            "end tokens",
            f"{side.name} declares no end token; completions run to the limit",
            "set eos_token in its tokenizer and eos_token_id in its generation_config.json",
        )
    elif ends[0] != ends[1] or student.end != teacher.end:
        found = Finding(
            "change",
            "end tokens",
            f"the student {said[0]}; the teacher {said[1]}",
            "what one side takes for the end the other reads on from, and lengths explode: stop the student's rollouts "
            f"at all of them (generation_config.eos_token_id = {both}), let the loss cover the token that ends a "
            f"completion, and give the student the teacher's end by a short SFT (TRL: eos_token in SFTConfig)",
        )
    else:
        found = Finding("fine", "end tokens", f"both sides end at {_named(student, both)}")
    if student.tokenizer.pad_token_id is None:
        return [found, Finding("change", "padding token", f"the student's tokenizer {NO_PADDING[0]}", NO_PADDING[1])]
    if student.end is not None and student.tokenizer.pad_token_id == student.end:
        return [
            found,
            Finding(
                "change",
                "padding token",
                f"the student pads with its end token, {_named(student, [student.end])}",
                "mask the loss by the attention mask and never by this id, or it does not learn to end; or pad with a "
                "token of its own",
            ),
        ]
    return [found]


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
    words = {"no": "does not think", "switch": "thinks unless told otherwise", "always": "always thinks"}
    modes = student.thinking, teacher.thinking
    found = f"the student {words[modes[0]]}, the teacher {words[modes[1]]} (by the chat templates)"
    if modes == ("no", "no"):
        return Finding("fine", "thinking mode", found)
    if "always" in modes:
        advice = "take a teacher that answers at once, or a student with the same template, and leave room for thoughts"
    else:
        advice = "render prompts with enable_thinking=False on both sides (TRL: chat_template_kwargs), or leave room"
    level: Level = "note" if modes[0] == modes[1] else "change"
    return Finding(level, "thinking mode", found, f"{advice}: completions may have {setting.completion_tokens} tokens")


def length_finding(student: Side, teacher: Side, setting: Setting) -> Finding:
    """Compare the longest text with what both sides can read."""
    limits = {"student": student.longest or NO_LIMIT, "teacher": teacher.longest or NO_LIMIT}
    said = " and ".join(f"{limit:,}" if limit < NO_LIMIT else "any number of" for limit in limits.values())
    found = f"student and teacher read {said} tokens; prompt and completion have up to {setting.tokens:,}"
    if setting.tokens > min(limits.values()):
        room = min(limits.values()) - setting.prompt_tokens
        advice = f"complete at most {room:,} tokens" if room > 0 else "shorten the prompts"
        return Finding("stop", "lengths", found, advice)
    return Finding("fine", "lengths", found)


def size_finding(student: Side, teacher: Side) -> Finding:
    """Compare the numbers of parameters."""
    ratio = teacher.n_parameters / student.n_parameters
    found = f"the teacher has {ratio:.1f} times the student's parameters"
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
            found.append(
                Finding(
                    "note",
                    "quantised weights",
                    f"{side.name} is stored in fewer than 16 bits and counted here as if it were not",
                    "take the original weights of a student: what is quantised cannot be trained in full",
                )
            )
    return found


def _few(words: Collection[str]) -> str:
    """Return the first few, and how many more there are."""
    more = f", and {len(words) - SHOWN:,} more" if len(words) > SHOWN else ""
    return ", ".join(list(words)[:SHOWN]) + more


def _named(side: Side, ids: Collection[int | None]) -> str:
    """Return tokens with their ids."""
    return ", ".join(f"{side.tokens.get(i, '?')} ({i})" for i in ids if i is not None) or "nothing"
