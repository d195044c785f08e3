"""Products in bf16 without a unit for them: the numbers of one, in float32 all the way, and nothing else touched."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from opdgeom_utils import bf16_products
from opdgeom_utils.bf16_products import RoundedProducts
from opdgeom_utils.run_files import rows_of
from opdgeom_utils.runs import load_or_train
from tests.tiny_world import World

ULP = 2.0**-8  # of bf16, at most, over a number
KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda a, b: torch.nn.functional.linear(a, b),
    "matmul": lambda a, b: torch.matmul(a, b.T),
    "operator": lambda a, b: a @ b.T,
    "mm": lambda a, b: a.mm(b.T),
    "bmm": lambda a, b: torch.bmm(a[None], b.T[None])[0],
    "addmm": lambda a, b: torch.addmm(torch.zeros(b.shape[0], dtype=a.dtype), a, b.T),
    "einsum": lambda a, b: torch.einsum("ik,jk->ij", a, b),
}


def operands(*, grad: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(24, 160, generator=generator), torch.randn(40, 160, generator=generator)
    return a.requires_grad_(grad), b.requires_grad_(grad)


class Seen(TorchDispatchMode):
    """Types of the operands of every product that torch makes, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in ("mm", "linear", "matmul")):
            self.types |= {value.dtype for value in args if isinstance(value, Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [True, False])
def test_a_product_is_the_rounded_sum_of_rounded_numbers(kind: str, autocast: bool) -> None:
    a, b = operands()
    exact = a.bfloat16().double() @ b.bfloat16().double().T
    given = (a, b) if autocast else (a.bfloat16(), b.bfloat16())
    with RoundedProducts(), torch.autocast("cpu", torch.bfloat16, enabled=autocast), Seen() as seen:
        product = KINDS[kind](*given)
    assert product.dtype == torch.bfloat16
    assert seen.types == {torch.float32}
    assert ((product.double() - exact).abs() <= ULP * exact.abs() + 1e-4).all()


def test_what_is_not_bf16_is_left_alone() -> None:
    a, b = operands()
    with RoundedProducts():
        assert torch.equal(a @ b.T, torch.matmul(*operands()[:1], b.T))
        assert (a @ b.T).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert (a.double() @ b.double().T).dtype == torch.float64
            assert (a + a).dtype == torch.float32
        with torch.autocast("cpu", torch.float16):
            assert (a @ b.T).dtype == torch.float16
    assert torch.equal(a @ b.T, operands()[0] @ operands()[1].T)


@pytest.mark.parametrize("inside", [True, False])
def test_gradients_are_those_of_bf16_and_never_made_in_it(inside: bool) -> None:
    """Where ``backward`` is called under autocast, torch would make bf16 of its products again."""

    def gradients() -> list[Tensor]:
        a, b = operands(grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = ((a @ b.T) @ torch.nn.functional.linear(b, b).T).float().square().mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return [w.grad for w in (a, b) if w.grad is not None]

    native = gradients()
    with RoundedProducts(), Seen() as seen:
        made = gradients()
    assert seen.types == {torch.float32}
    assert len(made) == 2
    for ours, theirs in zip(made, native, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < ULP / 2


def test_a_run_without_the_unit_is_a_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes, logs = world.recipes / "tiny.yaml", {}
    recipes.write_text(recipes.read_text().replace("defaults:", "defaults:\n  compute: bfloat16", 1))
    for slow in (False, True):
        monkeypatch.setattr(bf16_products, "are_slow", lambda slow=slow: slow)
        monkeypatch.setenv("OPDGEOM_RUNS", str(world.runs / str(slow)))
        with Seen() as seen:
            logs[slow] = rows_of(load_or_train("sft", profile="tiny").path / "log.jsonl")
        assert (torch.bfloat16 in seen.types) is not slow
    for with_unit, without in zip(logs[False], logs[True], strict=True):
        assert without["loss"] == pytest.approx(with_unit["loss"], rel=0.01)
        assert without["grad_norm"] == pytest.approx(with_unit["grad_norm"], rel=0.03)
