"""Winograd's minimal filtering for 3×3 convolutions: its matrices, and its kernels in TE.

F(m×m, 3×3) computes m×m outputs from (m+2)×(m+2) inputs d as Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A (Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308). Summed over the input channels, the
elementwise product becomes (m+2)² matrix products: (m+2)²/9m² of the direct form's multiplications, a quarter for m = 4
and four ninths for m = 2. The transformed weights are (m+2)²/9 times as large as the weights.

The matrices are those of Cook and Toom for a set of points. For m = 4 the points are 0, ±3/4, ±3/2 and infinity: exact
in binary, and with a third of the error of the usual 0, ±1, ±2 (2.4e-6 against 7.9e-6 of the largest output, 256
channels; the direct form has 1.1e-6).
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from tvm import te, tirx

Matrix = tuple[tuple[Fraction, ...], ...]
POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    4: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)),
}
# Marks the matrix product of the convolution for its schedule rule.
ANNOTATION = "winograd"


@dataclass(frozen=True)
class Transforms:
    """The matrices of F(m×m, 3×3): `output` Aᵀ [m, m+2], `weight` G [m+2, 3], `data` Bᵀ [m+2, m+2]."""

    output: Matrix
    weight: Matrix
    data: Matrix


@cache
def transforms(tile: int) -> Transforms:
    """The matrices for m = `tile`, by Cook and Toom: a product of polynomials from its values at the points."""
    points = POINTS[tile]
    weight, data = [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        weight.append(tuple(point**power / scale for power in range(3)))
        data.append((*_with_roots(others), Fraction(0)))
    weight.append((Fraction(0), Fraction(0), Fraction(1)))
    data.append(_with_roots(list(points)))
    output = [(*(point**power for point in points), Fraction(int(power == tile - 1))) for power in range(tile)]
    return Transforms(tuple(output), tuple(weight), tuple(data))


def _with_roots(roots: list[Fraction]) -> tuple[Fraction, ...]:
    """The coefficients, lowest power first, of the polynomial with these roots and highest coefficient 1."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(-root * value for value in coefficients), Fraction(0)]
        coefficients = [one + other for one, other in zip(shifted, scaled, strict=True)]
    return tuple(coefficients)


def _row(matrix: Matrix, row: tirx.Expr, column: Callable[[int], tirx.Expr], dtype: str) -> tirx.Expr:
    """Row `row`, a loop variable that is unrolled, of a matrix times a vector, given by its elements."""
    result = linear_combination(matrix[-1], column, dtype)
    for number in range(len(matrix) - 2, -1, -1):
        result = tirx.Select(row == number, linear_combination(matrix[number], column, dtype), result)
    return result


def linear_combination(coefficients: tuple[Fraction, ...], column: Callable[[int], tirx.Expr], dtype: str) -> tirx.Expr:
    """A row of a matrix times a vector, given by its elements, which are of a type or vectors of it.

    Even and odd elements are summed apart, for the rows of p and -p differ in the sign of one of the two sums.
    """
    sums: list[tuple[bool, tirx.Expr]] = []
    for first in (0, 1):
        terms = [(index, coefficients[index]) for index in range(first, len(coefficients), 2) if coefficients[index]]
        if not terms:
            continue
        negative = terms[-1][1] < 0
        total: tirx.Expr | None = None
        for index, coefficient in terms:
            value = -coefficient if negative else coefficient
            term = column(index) if value == 1 else column(index) * tirx.const(float(value), dtype)
            total = term if total is None else total + term
        sums.append((negative, total))
    (negative, total), *others = sorted(sums, key=lambda one: one[0])
    result = tirx.const(0.0, dtype) - total if negative else total
    for negative, other in others:
        result = result - other if negative else result + other
    return result


def transform_weight(weight: te.Tensor, tile: int, lanes: int) -> te.Tensor:
    """G g Gᵀ of every kernel, packed for the matrix products.

    Args:
        weight: [3, 3, I, O], of any type of real numbers.
        tile: m.
        lanes: output channels that lie together; divides O.

    Returns:
        [m+2, m+2, O / lanes, I, lanes], of the type of the weight.
    """
    _, _, inputs, outputs = map(int, weight.shape)
    matrix, dtype = transforms(tile).weight, str(weight.dtype)

    def transformed(a: tirx.Var, b: tirx.Var, block: tirx.Var, i: tirx.Var, lane: tirx.Var) -> tirx.Expr:
        def column(kx: int) -> tirx.Expr:
            return _row(matrix, a, lambda ky: weight[ky, kx, i, block * lanes + lane], dtype)

        return _row(matrix, b, column, dtype)

    side = tile + 2
    shape = (side, side, outputs // lanes, inputs, lanes)
    return te.compute(shape, transformed, name="weight_transform")


def convolution(data: te.Tensor, weight: te.Tensor, tile: int, padding: tuple[int, int, int, int]) -> te.Tensor:
    """The convolution with transformed weights.

    Args:
        data: [N, H, W, I], of any type of real numbers.
        weight: as `transform_weight` gives it, of the same type.
        tile: m.
        padding: top, left, bottom and right.

    Returns:
        [N, H', W', O], of the type of data and weight.
    """
    batch, height, width, inputs = map(int, data.shape)
    side, _, blocks, _, lanes = map(int, weight.shape)
    top, left, bottom, right = padding
    rows, columns = height + top + bottom - 2, width + left + right - 2
    tile_rows, tile_columns = -(-rows // tile), -(-columns // tile)
    transformed = _transform_data(data, tile, (tile_rows, tile_columns), (top, left))
    channel = te.reduce_axis((0, inputs), name="channel")
    # The tiles of all images on one axis: those that are held in registers at once may run over the end of a row.
    products = te.compute(
        (side, side, batch * tile_rows * tile_columns, blocks, lanes),
        lambda a, b, p, block, lane: te.sum(
            transformed[a, b, p // (tile_rows * tile_columns), p // tile_columns % tile_rows, p % tile_columns, channel]
            * weight[a, b, block, channel, lane],
            axis=channel,
        ),
        name="products",
        attrs={ANNOTATION: tile},
    )
    return _transform_products(products, tile, (tile_rows, tile_columns), (batch, rows, columns, blocks * lanes))


def _transform_data(data: te.Tensor, tile: int, tiles: tuple[int, int], before: tuple[int, int]) -> te.Tensor:
    """Bᵀ d B of every tile of data [N, H, W, I], padded with zeros.

    Args:
        data, tile: as `convolution`.
        tiles: rows and columns of tiles.
        before: padding at the top and at the left; at the bottom and at the right as much as the tiles reach.

    Returns:
        [m+2, m+2, N, rows of tiles, columns of tiles, I].
    """
    batch, height, width, inputs = map(int, data.shape)
    (tile_rows, tile_columns), (top, left) = tiles, before
    side, matrix, dtype = tile + 2, transforms(tile).data, str(data.dtype)

    def padded_value(n: tirx.Var, y: tirx.Var, x: tirx.Var, i: tirx.Var) -> tirx.Expr:
        inside = tirx.all(y >= top, y < height + top, x >= left, x < width + left)
        return tirx.if_then_else(inside, data[n, y - top, x - left, i], tirx.const(0.0, dtype))

    padded = te.compute((batch, tile_rows * tile + 2, tile_columns * tile + 2, inputs), padded_value, name="padded")
    rows_done = te.compute(
        (side, batch, tile_rows, tile_columns * tile + 2, inputs),
        lambda a, n, ty, x, i: _row(matrix, a, lambda k: padded[n, ty * tile + k, x, i], dtype),
        name="data_rows",
    )
    return te.compute(
        (side, side, batch, tile_rows, tile_columns, inputs),
        lambda a, b, n, ty, tx, i: _row(matrix, b, lambda k: rows_done[a, n, ty, tx * tile + k, i], dtype),
        name="data_transform",
    )


def _transform_products(
    products: te.Tensor, tile: int, tiles: tuple[int, int], shape: tuple[int, int, int, int]
) -> te.Tensor:
    """Aᵀ p A of every tile's products.

    Args:
        products: [m+2, m+2, tiles of all images, O / lanes, lanes].
        tile, tiles: as `_transform_data`.
        shape: of the result, [N, H', W', O].
    """
    side, _, _, blocks, lanes = map(int, products.shape)
    tile_rows, tile_columns = tiles
    matrix, dtype = transforms(tile).output, str(products.dtype)
    half = te.compute(
        (tile, side, shape[0], tile_rows, tile_columns, blocks, lanes),
        lambda dy, b, n, ty, tx, block, lane: _row(
            matrix, dy, lambda a: products[a, b, (n * tile_rows + ty) * tile_columns + tx, block, lane], dtype
        ),
        name="output_rows",
    )

    def output(n: tirx.Var, y: tirx.Var, x: tirx.Var, o: tirx.Var) -> tirx.Expr:
        def column(b: int) -> tirx.Expr:
            return half[y % tile, b, n, y // tile, x // tile, o // lanes, o % lanes]

        return _row(matrix, x % tile, column, dtype)

    return te.compute(shape, output, name="output")
