"""After a change of the training source that changes no number: prove it on each run, and keep the run.

A run's folder is named after a fingerprint that covers the source. For every finished run of the profile whose recipe
and seed are today's but whose fingerprint is not, this trains up to a checkpoint that every part of the run has touched
(the first; for a projected run, the first after the projection began) and compares all up to it, byte for byte, with
the stored ones. Where they agree, the folder gets today's fingerprint; where they do not, it stays and `make runs`
will train the run anew.
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
from opdgeom_utils.project_files import runs_folder
from opdgeom_utils.provenance import fingerprint, training_source
from opdgeom_utils.recipes import RUN_SPACE, Recipe, deciding_settings, load_recipe, recipe_names


def candidates(profile: str) -> list[tuple[runs.Run, runs.Run]]:
    """Pairs of a finished run under an old fingerprint and the same run under today's, which is not there.

    Runs that need another run's space come last, so that the other has been kept by then and is not trained anew.
    """
    pairs = []
    for folder in sorted(runs_folder().glob("*/DONE")):
        values = yaml.safe_load((folder.parent / "recipe.yaml").read_text(encoding="utf-8"))
        seed = values.pop("seed")
        if values["profile"] != profile or values["name"] not in recipe_names(profile):
            continue
        recipe = load_recipe(values["name"], profile)
        today = runs.run_of(recipe, seed)
        same = json.dumps(recipe.settings(), sort_keys=True) == json.dumps(deciding_settings(values), sort_keys=True)
        if same and not today.path.exists():
            pairs.append((runs.Run(recipe, seed, folder.parent), today))
    return sorted(pairs, key=lambda pair: bool(RUN_SPACE.fullmatch(pair[0].recipe.projection_space)))


def proving_checkpoints(recipe: Recipe) -> list[int]:
    """Return the checkpoints to train again: the first and, where a projection begins later, all up to its first.

    >>> proving_checkpoints(load_recipe("opd")), proving_checkpoints(load_recipe("opd_project_early", "first_regime"))
    ([2], [2, 4, 8, 12])
    """
    begins = recipe.projection_from if recipe.projection_space else 0
    last = min(step for step in recipe.checkpoints if step > begins)
    return [step for step in recipe.checkpoints if step <= last]


def checkpoints_agree(run: runs.Run) -> bool:
    """Train up to the last of :func:`proving_checkpoints` with today's source; compare every weight with the stored."""
    learner, wanted = runs.make_learner(run, "auto"), proving_checkpoints(run.recipe)
    for _ in training.train(learner):
        if learner.step in wanted:
            stored = storage.read_tensors(runs.checkpoint_path(run.path, learner.step))
            today = stored_state(learner.student)
            if today.keys() != stored.keys() or not all(torch.equal(today[name], stored[name]) for name in stored):
                return False
        if learner.step == wanted[-1]:
            break
    return True


def adopt(old: runs.Run, new: runs.Run) -> None:
    """Move the folder, and write today's fingerprint beside the one it was trained under."""
    path: Path = old.path / "provenance.json"
    origin = json.loads(path.read_text(encoding="utf-8"))
    origin["trained_as"] = origin.get("trained_as", origin["fingerprint"])
    origin |= {"fingerprint": fingerprint(new.recipe, new.seed), "training_source": training_source(new.recipe)}
    storage.write_json(path, origin)
    old.path.rename(new.path)


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="toy")
    torch.set_num_threads(1)
    for old, new in candidates(parser.parse_args().profile):
        if new.path.exists():  # another folder of the same run was kept a moment ago
            print(f"{old.path.name}: the same run is already kept as {new.path.name}", flush=True)
            continue
        agrees = checkpoints_agree(old)
        if agrees:
            adopt(old, new)
        print(
            f"{old.path.name}: {'kept as ' + new.path.name if agrees else 'differs, will be trained again'}", flush=True
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
