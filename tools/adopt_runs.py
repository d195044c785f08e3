"""After a change of the training source that changes no number: prove it on each run, and keep the run.

A run's folder is named after a fingerprint that covers the source. For every finished run of the profile whose recipe
and seed are today's but whose fingerprint is not, this trains the first checkpoint again and compares it byte for byte
with the stored one. Where they agree, the folder gets today's fingerprint; where they do not, it stays as it is and
`make runs` will train the run anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import yaml

from opdgeom_utils import runs, storage, training
from opdgeom_utils.models import stored_state
from opdgeom_utils.recipes import deciding_settings, load_recipe, recipe_names


def candidates(profile: str) -> list[tuple[runs.Run, runs.Run]]:
    """Pairs of a finished run under an old fingerprint and the same run under today's, which is not there."""
    pairs = []
    for folder in sorted(runs.runs_folder().glob("*/DONE")):
        values = yaml.safe_load((folder.parent / "recipe.yaml").read_text(encoding="utf-8"))
        seed = values.pop("seed")
        if values["profile"] != profile or values["name"] not in recipe_names(profile):
            continue
        recipe = load_recipe(values["name"], profile)
        path = runs.runs_folder() / f"{recipe.name}-s{seed}-{runs.fingerprint(recipe, seed)[:8]}"
        same = json.dumps(recipe.settings(), sort_keys=True) == json.dumps(deciding_settings(values), sort_keys=True)
        if same and not path.exists():
            pairs.append((runs.Run(recipe, seed, folder.parent), runs.Run(recipe, seed, path)))
    return pairs


def first_checkpoint_agrees(run: runs.Run) -> bool:
    """Train up to the first checkpoint with today's source and compare every weight with the stored one."""
    learner = runs.make_learner(run, "auto")
    stored = storage.read_tensors(run.checkpoints[0].path)
    for _ in training.train(learner):
        if learner.step == run.checkpoints[0].step:
            break
    today = stored_state(learner.student)
    return today.keys() == stored.keys() and all(torch.equal(today[name], stored[name]) for name in stored)


def adopt(old: runs.Run, new: runs.Run) -> None:
    """Move the folder, and write today's fingerprint beside the one it was trained under."""
    path: Path = old.path / "provenance.json"
    origin = json.loads(path.read_text(encoding="utf-8"))
    origin["trained_as"] = origin.get("trained_as", origin["fingerprint"])
    origin["fingerprint"] = runs.fingerprint(new.recipe, new.seed)
    storage.write_json(path, origin)
    old.path.rename(new.path)


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="toy")
    torch.set_num_threads(1)
    for old, new in candidates(parser.parse_args().profile):
        agrees = first_checkpoint_agrees(old)
        if agrees:
            adopt(old, new)
        print(
            f"{old.path.name}: {'kept as ' + new.path.name if agrees else 'differs, will be trained again'}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
