"""Do the two mean the same tokens, cut texts alike, and end them alike? One finding for each."""

from __future__ import annotations

from collections.abc import Collection

from opdgeom_utils.fit.findings import Finding
from opdgeom_utils.fit.sides import Side

SHOWN = 4  # of what differs
NO_PADDING = (
    "has no padding token, and texts of one batch are padded",
    "set tokenizer.pad_token to tokenizer.eos_token or to a token of its own, save the tokenizer, and mask the loss by "
    "the attention mask",
)
PROBES = (
    "The sum of 1234 and 56.7 is:\n\n  x² = naïve\t",
    '{"a": [1]}',
    "nai\u0308ve",  # a letter and its dots as two characters
    "I'LL don't",
    "  a text between spaces \n",
    "数学 🙂",
)


def tokens_finding(student: Side, teacher: Side) -> Finding:
    """Say whether an entry of the logits means the same token on both sides."""
    ours, theirs = student.tokens, teacher.tokens
    common = ours.keys() & theirs.keys()
    other = sorted(i for i in common if ours[i] != theirs[i])
    moved = {ours[i] for i in ours.keys() - theirs.keys()} & {theirs[i] for i in theirs.keys() - ours.keys()}
    if other or moved:
        named = [f"{i} is {ours[i]!r} and {theirs[i]!r}" for i in other] or sorted(map(repr, moved))
        count = f"{len(other):,} of {len(common):,} ids mean different tokens" if other else "tokens have other ids"
        return Finding(
            "stop",
            "tokens",
            f"{count}, in student and teacher: {_few(named)}",
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
    return _cut_finding(student, teacher)


def _cut_finding(student: Side, teacher: Side) -> Finding:
    """Say whether texts become the same tokens, where the tokens are the same."""
    sides, count = (student, teacher), len(student.tokens)
    added = sorted({token for side in sides for token in side.tokenizer.get_added_vocab()})
    texts = [*PROBES, *(f"a {token} b" for token in added)]
    cut = [side.tokenizer(texts, add_special_tokens=False)["input_ids"] for side in sides]
    for text, ours, theirs in zip(texts, *cut, strict=True):
        if ours != theirs:
            return Finding(
                "change",
                "tokens",
                f"the {count:,} tokens agree, but texts are cut differently: {text!r} into {len(ours)} and "
                f"{len(theirs)} tokens",
                "encode prompts once, with the student's tokenizer, and let the teacher score these tokens",
            )
    whole = [side.tokenizer(PROBES[0])["input_ids"] for side in sides]
    if whole[0] != whole[1]:
        marks = [[token for token in ids if token not in cut[0][0]] for ids in whole]
        said = [_named(side, ids) for side, ids in zip(sides, marks, strict=True)]
        return Finding(
            "change",
            "tokens",
            f"the {count:,} tokens agree, but around a text the student's tokenizer puts {said[0]}, the teacher's "
            f"{said[1]}",
            "encode prompts once and give both sides the same tokens: with the teacher's mark where the teacher was "
            "trained with one",
        )
    return Finding("fine", "tokens", f"the same {count:,} tokens on both sides, and texts are cut alike")


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
    deaf = [(side, words) for side, words in zip((student, teacher), said, strict=True)
            if side.end is not None and side.end not in side.stops]  # fmt: skip
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
    elif deaf:
        found = Finding(
            "change",
            "end tokens",
            "; ".join(f"{side.name} {words}" for side, words in deaf),
            "generate reads on after the token that ends a text, and completions grow to the limit: set eos_token_id "
            f"in generation_config.json to {both}",
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


def _few(words: Collection[str]) -> str:
    """Return the first few, and how many more there are."""
    more = f", and {len(words) - SHOWN:,} more" if len(words) > SHOWN else ""
    return ", ".join(list(words)[:SHOWN]) + more


def _named(side: Side, ids: Collection[int | None]) -> str:
    """Return tokens with their ids."""
    return ", ".join(f"{side.tokens.get(i, '?')} ({i})" for i in ids if i is not None) or "nothing"
