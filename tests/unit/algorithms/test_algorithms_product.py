"""Products by torch's other library against sums in float64, with their gradients; which of the two a product takes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from assay.algorithms import product
from assay.algorithms.product import linear
from assay.models.heap import give_back
from assay.pipeline import environment


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    request_onednn(monkeypatch)


def request_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product by oneDNN, on whatever processor and however small."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(product, "WIDE", 0)
    monkeypatch.setattr(product, "onednn_is_faster", lambda: True)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False], ids=["conv1d", "linear"])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (1, 1), (2, 1, 4)])
def test_values_and_gradients_are_those_of_the_sums(shape: tuple[int, ...], transposed: bool, with_bias: bool) -> None:
    given = [numbers(*shape, 7), numbers(7, 6, seed=1) if transposed else numbers(6, 7, seed=1)]
    given += [numbers(6, seed=2)] if with_bias else []
    fast, slow = (
        [tensor.detach().to(dtype).requires_grad_() for tensor in given] for dtype in (torch.float32, torch.float64)
    )
    upstream = numbers(*shape, 6, seed=3)

    def oriented(weight: torch.Tensor) -> torch.Tensor:
        return weight.T if transposed else weight

    y = linear(fast[0], oriented(fast[1]), *fast[2:])
    y.backward(upstream)
    wanted = (slow[0][..., None, :] * oriented(slow[1])).sum(-1) + sum(slow[2:])
    wanted.backward(upstream.double())
    torch.testing.assert_close(y.double(), wanted, rtol=1e-5, atol=1e-5)
    for mine, right in zip(fast, slow, strict=True):
        assert mine.grad is not None
        assert right.grad is not None
        torch.testing.assert_close(mine.grad.double(), right.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fast", [True, False], ids=["onednn", "torch"])
def test_a_product_is_added_in_place_slice_by_slice(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fast:
        request_onednn(monkeypatch)
    monkeypatch.setattr(product, "SLICE", 3)
    to, x, weight = numbers(8, 5), numbers(4, 8, seed=1).T, numbers(4, 5, seed=2).T
    expected = to.double() + (x.double()[:, None, :] * weight.double()).sum(-1)
    product.add_product(to, x, weight)
    torch.testing.assert_close(to.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("onednn")
def test_only_the_gradients_that_are_asked_for_are_taken() -> None:
    x, weight, bias = numbers(4, 7).requires_grad_(), numbers(6, 7), numbers(6)
    linear(x, weight, bias).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(4, 7))
    with torch.no_grad():
        assert not linear(x, weight, bias).requires_grad


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_formats_and_autocast_are_torchs_own(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "_onednn", None)
    x, weight = numbers(4, 7).to(dtype), numbers(6, 7).to(dtype)
    assert linear(x, weight).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x.float(), weight.float()).dtype == torch.bfloat16


def test_products_with_narrow_weights_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(product, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(product, "_onednn", lambda x, w, b: asked.append((*x.shape, *w.shape)))
    for rows, width, outputs in ((1, 256, 512), (4096, 255, 4096), (4096, 4096, 255)):
        linear(torch.zeros(rows, width), torch.zeros(outputs, width))
    assert asked == [(1, 256, 512, 256)]


def kept_after_many_shapes(shapes: int = 600) -> float:
    """Megabytes that stay after products with as many different numbers of rows."""
    x, weight = torch.randn(100 + shapes, 256), torch.randn(688, 256)

    def multiply(rows: int) -> None:
        torch.ops.mkldnn._linear_pointwise(x[:rows], weight, None, "none", [], "")

    multiply(100 + shapes)
    give_back()
    before = environment.resident_mb()
    for rows in range(100, 100 + shapes):
        multiply(rows)
    give_back()
    return environment.resident_mb() - before


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no such product")
def test_the_library_forgets_products_of_shapes_that_are_gone() -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    plain = {key: value for key, value in os.environ.items() if key != name}

    def kept(environ: dict[str, str]) -> float:
        program = (
            "from tests.unit.algorithms import test_algorithms_product as here; print(here.kept_after_many_shapes())"
        )
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
        return float(done.stdout)

    theirs, ours = kept(plain | {name: "1024"}), kept(plain)
    assert ours < 0.8 * theirs or theirs < 50, f"{ours:.0f} MB stay, and {theirs:.0f} MB by itself"
