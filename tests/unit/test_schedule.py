"""A run's schedule: read from what a real trainer leaves behind, or as told, and refused where it makes no sense."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from opdgeom_utils import cli, diagnose_pair, diagnose_trajectory
from opdgeom_utils.chapters.your_run import ADAPTED, noise_options, open_run
from opdgeom_utils.chapters.your_run_caveats import LOW_RANK, caveats, narrow_formats
from opdgeom_utils.checkpoints import open_checkpoint
from opdgeom_utils.diagnose.schedule import STATE, rates_of_state, schedule_of, state_beside, walks_at
from opdgeom_utils.errors import MetricInputError, TrainerStateError
from tests.random_adapter import random_adapter

W = "model.layers.0.self_attn.q_proj.weight"
NORM = "model.norm.weight"


def state(folder: Path, history: object, **more: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STATE).write_text(json.dumps({"log_history": history, **more}))
    return folder / STATE


def logged(rates: dict[int, float]) -> list[dict[str, float]]:
    return [{"step": step, "learning_rate": rate, "loss": 1.0} for step, rate in rates.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    """A folder that transformers' own Trainer wrote, and the rates that its optimiser really had."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Watch(TrainerCallback):
        def __init__(self) -> None:
            self.rates: list[float] = []

        def on_pre_optimizer_step(self, args, state, control, **given) -> None:
            self.rates.append(given["optimizer"].param_groups[0]["lr"])

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=11, num_key_value_heads=1, head_dim=8, **sizes))
    folder, watch = tmp_path_factory.mktemp("trainer") / "run", Watch()
    model.save_pretrained(folder.parent / "before")
    rows = [{"input_ids": torch.randint(11, (4,)), "labels": torch.randint(11, (4,))} for _ in range(4)]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=40, per_device_train_batch_size=1, learning_rate=1e-3, warmup_steps=10,
        lr_scheduler_type="cosine", logging_steps=5, save_steps=20, report_to=[], disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows, callbacks=[watch]).train()
    return folder, watch.rates


def test_rates_of_a_real_trainer_are_found_again(trained: tuple[Path, list[float]]) -> None:
    folder, real = trained
    path = state_beside(folder / "checkpoint-40")
    assert path is not None
    rates, said = rates_of_state(path)
    assert len(rates) == len(real) == 40
    assert rates == pytest.approx(
        real, abs=0.1 * max(real)
    )  # at the end of the warm-up, between two entries of the log
    assert math.hypot(*rates) == pytest.approx(math.hypot(*real), rel=0.02)
    assert "8 of 40, every 5" in said
    assert rates_of_state(path, updates=20)[0] == rates[:20]


def test_a_trainers_run_stands_beside_noise_without_a_word(
    trained: tuple[Path, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By command: the columns are there at each checkpoint, and a few coherent updates went further than noise."""
    folder, real = trained
    out = tmp_path / "table.csv"
    assert cli.main(["diagnose", str(folder.parent / "before"), str(folder), "--no-nulls", "-o", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "40 updates, their learning rates read from trainer_state.json" in printed
    assert "are assumed" in printed
    table = pd.read_csv(out)
    assert sorted(set(table["step"])) == [20, 40]
    ratios = table.loc[table["module"] == "q_proj"].set_index("step")["walk_ratio"]
    norms = table.loc[table["module"] == "q_proj"].set_index("step")["update_norm"]
    by_hand = norms.loc[40] / 16 / math.hypot(*real)  # q_proj has 16 x 16 entries
    assert ratios.loc[40] == pytest.approx(
        by_hand, rel=0.15
    )  # forty updates of Adam walk a tenth further than the root
    assert table["noise_sparsity"].between(0, 1).all()


def test_an_adapter_is_not_set_beside_noise_for_matrices_that_adam_never_stepped(
    trained: tuple[Path, list[float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Trainer leaves its rates beside an adapter too; Adam moved the factors along them, not their product."""
    from transformers import AutoModelForCausalLM

    before = trained[0].parent / "before"
    adapter = random_adapter(AutoModelForCausalLM.from_pretrained(before), tmp_path / "checkpoint-40")
    shutil.copy(trained[0] / "checkpoint-40" / STATE, adapter)
    run = open_run(str(before), str(adapter), base=str(before))
    assert noise_options(run) == noise_options(run, learning_rate=1e-3) == ({}, [ADAPTED])
    assert cli.main(["diagnose", str(before), str(adapter), "--base", str(before), "-o", str(tmp_path / "t.csv")]) == 0
    assert "Adam moved its factors" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "t.csv")
    assert "walk_ratio" not in table
    assert LOW_RANK in caveats(table.assign(step=40), run, 4)
    assert table["dtype"].str.endswith("float32").all()
    half = table.assign(dtype=table["dtype"].where(table["note"].isna(), "bfloat16->bfloat16"))  # a base in bf16
    assert not narrow_formats(half)
    assert narrow_formats(half.assign(note="")) == ["bfloat16"]
    assert LOW_RANK not in caveats(table.assign(step=40), open_run(str(before), str(before)), 4)
    with pytest.raises(MetricInputError, match="is an adapter: Adam moved its factors"):
        diagnose_pair(open_checkpoint(before), run.checkpoints[0][1], learning_rates=[1e-3])


def test_every_logged_rate_is_kept_and_the_others_are_on_straight_lines(tmp_path: Path) -> None:
    path = state(tmp_path, logged({2: 2.0, 4: 4.0, 8: 0.0}), global_step=9)
    rates, said = rates_of_state(path)
    assert rates == [1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0, 0.0, 0.0]  # on before the first, and never below 0
    assert "it logs 3 of 9, every 2" in said
    assert rates_of_state(state(tmp_path, logged({1: 0.5, 2: 0.25})))[1].endswith(f"read from {STATE}")
    assert rates_of_state(state(tmp_path, [*logged({3: 0.5}), {"step": 3, "eval_loss": 1.0}]))[0] == [0.5] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "holds a list"),
        ('{"log_history": [{"step": 1, "loss": 2.0}]}', "logs no learning rate"),
        ('{"log_history": 3}', "logs no learning rate"),
        ('{"log_history": [{"step": 1, "learning_rate": -1e-6}]}', "no finite numbers from 0 up"),
        ('{"log_history": [{"step": 1, "learning_rate": NaN}]}', "no finite numbers from 0 up"),
        ('{"log_history": [{"step": 1, "learning_rate": "fast"}]}', "no finite numbers from 0 up"),
        ('{"log_history": [{"step": 2000000000, "learning_rate": 1}]}', "no finite numbers from 0 up"),
        ('{"log_history": [{"step": [1], "learning_rate": 1}]}', "no finite numbers from 0 up"),
        ('{"global_step": 5, "log_history": [{"step": 5, "learning_rate": 1}]}', "ends at update 5"),
    ],
)
def test_a_damaged_state_is_a_note_and_no_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / STATE).write_text(text)
    with pytest.raises(TrainerStateError, match=message):
        rates_of_state(tmp_path / STATE, updates=6)
    found, remark = schedule_of({}, tmp_path, updates=6)
    assert found is None
    assert message in remark
    assert "--learning-rate 1e-6 (opdgeom)" in remark


def test_what_is_told_wins_over_what_lies_there(tmp_path: Path) -> None:
    state(tmp_path, logged({1: 0.5, 2: 0.5}))
    read, _ = schedule_of({"betas": [0.9, 0.95], "weight_decay": 0.1}, tmp_path, updates=None)
    told, remark = schedule_of({"learning_rate": 1e-6, "schedule": "linear", "warmup": 0.5}, tmp_path, updates=4)
    assert read is not None
    assert told is not None
    assert (read.rates, read.betas, read.weight_decay) == ((0.5, 0.5), (0.9, 0.95), 0.1)
    assert told.rates == pytest.approx((0.5e-6, 1e-6, 1e-6, 0.5e-6))
    assert told.said == "4 updates at a learning rate of 1e-06, linear after a warm-up over 0.5 of them, as given"
    assert "are assumed" in remark


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rate": -1e-6, "updates": 5}, "learning_rate is -1e-06, expected a number above 0"),
        ({"learning_rate": math.nan, "updates": 5}, "learning_rate is nan"),
        ({"learning_rate": 1e-6, "updates": 0}, "updates is 0"),
        ({"learning_rate": 1e-6, "updates": 3}, r"updates is 3, expected 4 \(the last checkpoint's step\)"),
        ({"learning_rate": 1e-6, "updates": 5, "warmup": 1.5}, "warmup is 1.5"),
        ({"learning_rate": 1e-6, "updates": 5, "schedule": "step"}, "expected constant, linear or cosine"),
        ({"learning_rate": 1e-6, "updates": 5, "betas": [0.9]}, "betas is"),
        ({"learning_rate": 1e-6, "updates": 5, "betas": [0.9, 1.0]}, "betas is"),
        ({"learning_rate": 1e-6, "updates": 5, "weight_decay": -1}, "weight_decay is -1"),
        ({"learning_rate": 1e-6, "updates": 5, "final_learning_rate": -1.0}, "learning_rates has"),
        ({"updates": 5}, "updates is given and no learning rate"),
        ({"betas": [0.9, 0.99]}, f"no {STATE} lies beside"),
        ({"momentum": 0.9}, "momentum is given"),
    ],
)
def test_words_that_make_no_schedule_are_refused(tmp_path: Path, given: dict, message: str) -> None:
    with pytest.raises(MetricInputError, match=message):
        schedule_of(given, tmp_path, updates=4)


def test_a_rate_without_a_number_of_updates_says_how_to_give_it() -> None:
    with pytest.raises(MetricInputError, match=r"--updates 1000 \(opdgeom\)"):
        schedule_of({"learning_rate": 1e-6}, None, updates=None)


def test_state_lies_beside_a_checkpoint_or_above_a_step_and_nowhere_else(tmp_path: Path) -> None:
    state(tmp_path / "run", logged({1: 1.0}))
    (tmp_path / "run/checkpoint-5").mkdir()
    (tmp_path / "run/final").mkdir()
    assert state_beside(tmp_path / "run/checkpoint-5") == tmp_path / "run" / STATE
    assert state_beside(tmp_path / "run/final") is None
    assert state_beside("maker/model") is None
    own = state(tmp_path / "run/checkpoint-5", logged({1: 1.0}))
    assert state_beside(own.parent) == own
    (own.parent / "model.safetensors").touch()
    assert state_beside(own.parent / "model.safetensors") == own


def pair(folder: Path, step: str, moved: float) -> tuple[Path, Path]:
    for name, more in (("before", 0.0), (step, moved)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        weights = {W: torch.eye(8).bfloat16().float() + more, NORM: torch.ones(8) + more}
        save_file(weights, folder / name / "model.safetensors")
    return folder / "before", folder / step


def test_columns_of_noise_by_hand(tmp_path: Path) -> None:
    """One update at rate 1/64: noise and signal both move every entry by 1/64; here they moved by 1/32."""
    table = diagnose_pair(*pair(tmp_path, "after", 1 / 32), k=2, learning_rates=[1 / 64], nulls=False).set_index("name")
    assert table.loc[W, "walk_ratio"] == pytest.approx(2, rel=1e-6)
    assert math.isnan(table.loc[W, "coherence"])  # after one update, noise and signal are as far
    assert math.isnan(table.loc[NORM, "walk_ratio"])
    # At 1, half a step of bf16 is 1/256 above and 1/512 below: 4 and 8 times less than the move.
    from scipy.stats import norm

    assert table.loc[NORM, "noise_sparsity"] == pytest.approx(norm.cdf(1 / 4) - norm.cdf(-1 / 8), rel=1e-6)
    assert list(table)[-8:-5] == ["walk_ratio", "coherence", "noise_sparsity"]


def test_a_checkpoint_has_had_the_rates_up_to_its_step(tmp_path: Path) -> None:
    before, _ = pair(tmp_path, "checkpoint-1", 1 / 32)
    pair(tmp_path, "checkpoint-4", 1 / 16)
    rates = [1 / 64, 0.0, 0.0, 1 / 16, 1.0]
    steps = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-4"]
    table = diagnose_trajectory(before, steps, k=2, nulls=False, learning_rates=rates, betas=(0.0, 0.0))
    # Without memory Adam steps by the rate exactly, either way.
    ratios = table.loc[table["name"] == W, "walk_ratio"].tolist()
    assert ratios == pytest.approx([2.0, 1 / 16 / math.hypot(1 / 64, 1 / 16)], rel=1e-6)
    only_last = diagnose_trajectory(before, steps, k=2, nulls=False, learning_rates={4: rates[:4]}, betas=(0.0, 0.0))
    assert np.isnan(only_last.loc[only_last["step"] == 1, "noise_sparsity"]).all()
    assert only_last.loc[only_last["name"] == W, "walk_ratio"].iloc[1] == pytest.approx(ratios[1])
    with pytest.raises(MetricInputError, match="step 4, and there are 3 learning rates"):
        diagnose_trajectory(before, steps, learning_rates=rates[:3])
    assert walks_at([3], None, betas=(0.9, 0.999), weight_decay=0.0) == ()


def test_steps_that_are_no_updates_leave_noise_to_the_last_checkpoint(tmp_path: Path) -> None:
    before, first = pair(tmp_path, "early", 1 / 32)
    _, last = pair(tmp_path, "late", 1 / 16)
    run = open_run(str(before), [str(first), str(last)])
    options, said = noise_options(run, learning_rate=1e-3, updates=7)
    assert list(options["learning_rates"]) == [2]
    assert len(options["learning_rates"][2]) == 7
    assert said[-1].startswith("No name holds a number of updates")
    run = open_run(str(before), str(pair(tmp_path, "checkpoint-9", 1 / 16)[1]))
    assert len(noise_options(run, learning_rate=1e-3)[0]["learning_rates"][9]) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--learning-rate", "-1e-6", "--updates", "5"], "learning_rate is -1e-06"),
        (["--learning-rate", "1e-6"], "number of updates is not"),
        (["--learning-rate", "1e-6", "--updates", "5", "--warmup", "2"], "warmup is 2.0"),
        (["--learning-rate", "1e-6", "--updates", "5", "--betas", "much"], "betas is 'much'"),
    ],
)
@pytest.mark.parametrize("command", ["diagnose", "report"])
def test_the_commands_refuse_them_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, options: list[str], message: str
) -> None:
    before, after = pair(tmp_path, "after", 1 / 32)
    out = {"diagnose": "t.csv", "report": "r.html"}[command]
    assert cli.main([command, str(before), str(after), "-o", str(tmp_path / out), *options]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.work"))


COSINE = [1e-4 * (1 + math.cos(math.pi * t / 400)) / 2 for t in range(400)]


def every(n: int, *also: int) -> list[dict[str, float]]:
    return logged({t: COSINE[t - 1] for t in range(1, 401) if t % n == 0 or t in also})


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (logged({1: 0.0}), "no learning rate above 0"),
        (logged(dict.fromkeys(range(1, 401), 0.0)), "no learning rate above 0"),
        (logged({1: 1e-6}), "one learning rate, of update 1, for 400 updates"),  # logging_first_step in a warm-up
        (every(300), "one learning rate, of update 300"),
        (every(10)[:5], "no learning rate of updates 51 to 400"),
        (every(10)[20:], "no learning rate of updates 1 to 209"),
    ],
)
def test_a_log_that_tells_no_schedule_is_not_stretched_over_the_run(tmp_path: Path, history: list, words: str) -> None:
    """Five entries of a warm-up on a straight line to update 400 would rise to many times the highest rate."""
    with pytest.raises(TrainerStateError, match=words):
        rates_of_state(state(tmp_path, history, global_step=400))


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (every(10, 1), "it logs 41 of 400, every 10, and"),
        (every(10)[:10] + every(100)[1:], "it logs 13 of 400, every 10, with gaps up to 100, and"),
        (every(100), "it logs 4 of 400, every 100, and the others are on straight lines between them. So few"),
    ],
)
def test_a_log_is_described_as_it_is(tmp_path: Path, history: list, words: str) -> None:
    rates, said = rates_of_state(state(tmp_path, history, global_step=400))
    assert words in said
    assert max(rates) <= max(entry["learning_rate"] for entry in history)
    assert math.hypot(*rates) == pytest.approx(math.hypot(*COSINE), rel=0.1)
    assert rates_of_state(tmp_path / STATE, updates=205)[1].startswith("205 updates (the first of 400), their")


def test_a_best_checkpoint_that_may_have_been_put_back_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "final"
    state(folder, every(10), global_step=400, best_model_checkpoint="/elsewhere/run/checkpoint-200")
    assert "names update 200 as the best" in schedule_of({}, folder, updates=None)[1]
    assert "best" not in schedule_of({}, folder, updates=400)[1]
    assert "first group of parameters" in schedule_of({}, folder, updates=400)[1]


def test_a_final_rate_without_a_fall_is_a_question(tmp_path: Path) -> None:
    told = {"learning_rate": 1e-4, "updates": 9, "final_learning_rate": 1e-6}
    with pytest.raises(MetricInputError, match="the schedule is constant"):
        schedule_of(told, tmp_path, updates=None)
    found, _ = schedule_of({**told, "schedule": "linear"}, tmp_path, updates=None)
    assert found is not None
    assert found.said == "9 updates at a learning rate of 0.0001, linear down to 1e-06, as given"


def test_a_reference_from_the_same_run_takes_its_updates_away(tmp_path: Path) -> None:
    early, late = (pair(tmp_path / "run", f"checkpoint-{n}", n / 64)[1] for n in (30, 100))
    rates = [1e-3] * 30 + [1e-4] * 70
    state(late, logged(dict(enumerate(rates, start=1))), global_step=100)
    options, said = noise_options(open_run(str(early), str(late)))
    assert options["learning_rates"][100] == pytest.approx(rates[30:])
    assert "REFERENCE at step 30: of these updates, 70 count" in said[-1]
    swapped = open_run(str(late), str(early))
    assert any("exchange the two" in remark for remark in swapped.remarks)
    assert noise_options(swapped, learning_rate=1e-3) == ({}, [])
    other = pair(tmp_path / "other", "checkpoint-30", 1.0)[1]
    assert len(noise_options(open_run(str(other), str(late)))[0]["learning_rates"][100]) == 100


def test_updates_beyond_the_last_checkpoint_are_not_given_to_noise_without_a_word(tmp_path: Path) -> None:
    before, after = pair(tmp_path, "update2", 1.0)
    options, said = noise_options(open_run(str(before), str(after)), learning_rate=1e-3, updates=50)
    assert len(options["learning_rates"][2]) == 2
    assert "the last checkpoint is at step 2: of these updates, 2 count" in said[-1]
