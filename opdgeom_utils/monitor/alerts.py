"""Three things that are said once, when a run shows them: each by a rule that is written here and on the page."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

#: Fewest updates before noise is named; how near to noise is none better; how long a space must be left.
ENOUGH_UPDATES, NEAR_NOISE, IN_A_ROW = 100, 1.1, 3
#: A step was inside where its share was above so many times chance, and is outside below so many times.
INSIDE, OUTSIDE = 2.0, 1.25
MOVED = 0.5


class Alerts:
    """Say a thing once: to the given function, to trackio's open run, or as a warning."""

    def __init__(self, say: Callable[[str, str], object] | None = None) -> None:
        self._say = say or to_trackio_or_warning
        self._said: set[str] = set()
        self._was_inside, self._left_for = False, 0

    def look(self, step: int, updates: int, latest: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> None:
        """Apply the three rules to a measurement."""
        short = [r for r in rows if r["dtype"] in ("bfloat16", "float16") and r.get("step_changed", 1.0) < MOVED]
        if short and 2 * len(short) > len(rows):
            share = sum(r["step_changed"] for r in short) / len(short)
            self._once(
                "bf16 is swallowing the update",
                f"step {step}: the weights are kept in {short[0]['dtype']}, and {share:.1%} of their entries moved "
                "in the last step; the others were rounded back. Keep float32 weights (with autocast).",
            )
        ratio = latest.get("geometry/walk_ratio", 0.0)
        if updates >= ENOUGH_UPDATES and 0 < ratio < NEAR_NOISE:
            self._once(
                "the update is no longer than noise would make it",
                f"step {step}: after {updates} updates the weights went {ratio:.2f} times as far as Adam carries them "
                "on gradients that are pure noise. A larger batch has more signal in each update.",
            )
        self._channel(step, latest)

    def _channel(self, step: int, latest: Mapping[str, float]) -> None:
        sides = [
            latest[f"geometry/step_inside_{side}"] / latest[f"geometry/step_inside_{side}_random"]
            for side in ("left", "right")
            if {f"geometry/step_inside_{side}", f"geometry/step_inside_{side}_random"} <= latest.keys()
        ]
        if not sides:
            return
        self._left_for = self._left_for + 1 if self._was_inside and max(sides) < OUTSIDE else 0
        self._was_inside |= max(sides) > INSIDE
        if self._left_for >= IN_A_ROW:
            self._once(
                "the channel is being left",
                f"step {step}: steps were inside the update's early space, and for {IN_A_ROW} measurements their "
                f"share there was below {OUTSIDE} times chance, left and right. Other directions are learned, or none.",
            )

    def _once(self, title: str, text: str) -> None:
        if title not in self._said:
            self._said.add(title)
            self._say(title, text)


def to_trackio_or_warning(title: str, text: str) -> None:
    """Send an alert to trackio where this process has it loaded and takes it; warn otherwise."""
    trackio = sys.modules.get("trackio")
    try:
        if trackio is not None:
            trackio.alert(title=title, text=text, level=trackio.AlertLevel.WARN)
            return
    except (AttributeError, RuntimeError):  # an older trackio, or no open run
        pass
    warnings.warn(f"{title}: {text}", stacklevel=2)
