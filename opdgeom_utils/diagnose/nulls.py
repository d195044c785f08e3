"""What each measurement gives when nothing was learned: the nulls of RQ1.

Three of them. The shuffled update keeps an update's norm and the distribution of its entries, and destroys only their
place. The random update keeps only the Frobenius norm. The identical pair is a matrix against itself: it shows what the
method reports when nothing moved at all.

Every null is drawn from a generator seeded by ``(seed, name)`` on the CPU, so a matrix has the same null whatever the
order, the number of processes or the device.
"""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from opdgeom_utils.errors import MetricInputError
from opdgeom_utils.linalg.factors import Factors
from opdgeom_utils.metrics.inputs import checked
from opdgeom_utils.metrics.subspaces import PrincipalAngles, angles_between


def null_generator(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator that depends on nothing but ``seed`` and ``name``.

    ``name``: what the null is for, such as a matrix name and the kind of null.
    Returns the same stream on every machine and in every process. Raises MetricInputError when ``seed`` is not a whole
    number.

    >>> first = torch.rand(1, generator=null_generator(0, "q_proj"))
    >>> bool(first == torch.rand(1, generator=null_generator(0, "q_proj")))
    True
    >>> bool(first == torch.rand(1, generator=null_generator(1, "q_proj")))
    False
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise MetricInputError(f"seed is {seed!r}, expected a whole number.")
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device="cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@checked(tensors=("delta_w",))
def shuffled_update(delta_w: Float[Tensor, "*shape"], *, generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Shuffle an update inside its own matrix: same entries, other places.

    The strongest null for whatever rests on the bf16-visible mask of the paper (arXiv 2606.07082, update sparsity and
    mask overlap). The paper has no such null. It is fair only where both weights were kept in float32. An update read
    from weights stored in bf16 was rounded once already: it is zero where nothing showed, and what did show may be too
    small to show at its new place. Then its shuffle is sparser than the update even if the update has no structure.

    ``delta_w``: the update, any floating dtype, which is kept.
    Returns a uniformly random permutation of the entries. Norm and distribution are exactly the update's. Raises
    MetricInputError for anything but a finite, non-empty floating tensor.

    >>> update = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> shuffled_update(update, generator=null_generator(0, "w")).flatten().sort().values.tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    order = _random_order(delta_w.numel(), generator)
    return delta_w.flatten().index_select(0, order.to(delta_w.device)).reshape(delta_w.shape)


def shuffled_difference(
    w_ref: Float[Tensor, "*shape"], w_new: Float[Tensor, "*shape"], *, generator: torch.Generator
) -> Float[Tensor, "*shape"]:
    """Return :func:`shuffled_update` of ``w_new - w_ref`` in float64, on the CPU, without making the update itself.

    Both are shuffled alike and then subtracted: two bytes an entry move through memory for bf16, not eight.

    >>> w_ref, w_new = torch.ones(3), torch.tensor([1.0, 2.0, 4.0])
    >>> shuffled = shuffled_difference(w_ref, w_new, generator=null_generator(0, "w"))
    >>> torch.equal(shuffled, shuffled_update((w_new - w_ref).double(), generator=null_generator(0, "w")))
    True
    """
    order = _random_order(w_ref.numel(), generator)
    after = w_new.detach().cpu().flatten().index_select(0, order)
    before = w_ref.detach().cpu().flatten().index_select(0, order)
    del order  # four bytes an entry, which the float64 copy would stand beside
    difference = after.double()
    del after
    return difference.sub_(before).reshape(w_ref.shape)


def _random_order(n: int, generator: torch.Generator) -> Tensor:
    """Draw a permutation. It is the same in either integer type; the smaller one halves the memory and the time."""
    return torch.randperm(n, generator=generator, dtype=torch.int32 if n < 2**31 else torch.int64)


def random_of_norm(shape: tuple[int, ...], norm: float, *, generator: torch.Generator) -> Float[Tensor, "*shape"]:
    """Draw a Gaussian update of a given Frobenius norm, in float64, on the CPU.

    It is what drift without direction would give for every static diagnostic of the paper (arXiv 2606.07082).

    >>> round(float(random_of_norm((2, 2), 5.0, generator=null_generator(0, "w")).norm()), 12)
    5.0
    """
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return noise.mul_(norm / float(noise.norm()))


def identical_angles(reference: Factors, *, k: int) -> PrincipalAngles:
    """Return the principal angles that the method reports for a matrix against itself: 0 but for rounding.

    >>> from opdgeom_utils.linalg.factors import factorize
    >>> identical_angles(factorize(torch.eye(3), cuts=(2,)), k=2).left_deg.tolist()
    [0.0, 0.0]
    """
    return angles_between(reference, reference, k=k)
