"""A tutorial's asserts, taken apart: what is claimed, and what came out.

An assert that compares sizes (``<``, ``<=``, ``>``, ``>=``) is a *claim*: it is about numbers that
were measured, and another machine, other versions or another seed give others. All other asserts
(of equality, of a shape) are about the program, and stay as they are.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch

SIZES: dict[type[ast.cmpop], str] = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
HOLDS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
REPORT = "__claim__"  # the name that the rewritten asserts call


class Claim(NamedTuple):
    """One assert, evaluated once.

    `sides` has a row for each comparison that had to hold, with its numbers from left to right.
    """

    line: int
    text: str
    signs: tuple[str, ...]
    sides: list[list[float]]
    message: str

    def pairs(self, row: list[float]) -> Iterator[tuple[str, float, float]]:
        for sign, (left, right) in zip(self.signs, pairwise(row), strict=True):
            yield sign, left, right

    @property
    def margin(self) -> float:
        """By how much the closest comparison held; negative if it did not."""
        margins = (
            right - left if sign[0] == "<" else left - right
            for row in self.sides
            for sign, left, right in self.pairs(row)
        )
        return min(margins, default=math.inf)

    @property
    def failed(self) -> list[list[float]]:
        """The rows of `sides` that do not hold."""
        return [
            row
            for row in self.sides
            if not all(HOLDS[sign](left, right) for sign, left, right in self.pairs(row))
        ]

    def came_out(self) -> str:
        """The rows that failed, as ``0.21 < 0.2``; at most three of them."""
        failed = self.failed
        shown = (
            f"{row[0]:.4g}" + "".join(f" {sign} {right:.4g}" for sign, _, right in self.pairs(row))
            for row in failed[:3]
        )
        return ", ".join(shown) + (f", and {len(failed) - 3} more" if len(failed) > 3 else "")


def compares_sizes(node: ast.expr) -> bool:
    return isinstance(node, ast.Compare) and all(type(op) in SIZES for op in node.ops)


class Shape(NamedTuple):
    """A claim is ``a < b``, ``(a < b).all()`` of two tensors, or ``all(a < b for ...)``."""

    compare: ast.Compare
    elementwise: bool
    loops: list[ast.comprehension]


def shape_of(test: ast.expr) -> Shape | None:
    match test:
        case ast.Compare():
            shape = Shape(test, False, [])
        case ast.Call(
            func=ast.Attribute(value=ast.Compare() as compare, attr="all"), args=[], keywords=[]
        ):
            shape = Shape(compare, True, [])
        case ast.Call(
            func=ast.Name("all"),
            args=[ast.GeneratorExp(elt=ast.Compare() as compare, generators=loops)],
        ):
            shape = Shape(compare, False, loops)
        case _:
            return None
    return shape if compares_sizes(shape.compare) else None


class Rewrite(ast.NodeTransformer):
    """Replace each claim by a call of `REPORT`, which gets its operands."""

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        shape = shape_of(node.test)
        if shape is None:
            return node
        compare, elementwise, loops = shape
        signs = tuple(SIZES[type(op)] for op in compare.ops)
        operands: ast.expr = ast.Tuple([compare.left, *compare.comparators], ast.Load())
        rows = ast.ListComp(operands, loops) if loops else ast.List([operands], ast.Load())
        values = node.lineno, ast.unparse(node.test), signs, elementwise
        constants = [ast.Constant(value) for value in values]
        message = ast.parse("lambda: ''", mode="eval").body
        if node.msg:
            message.body = node.msg
        call = ast.Call(ast.Name(REPORT, ast.Load()), [*constants, rows, message], keywords=[])
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(call), node))


def evaluate(
    line: int,
    text: str,
    signs: tuple[str, ...],
    elementwise: bool,
    rows: Iterable[Sequence[Any]],
    message: Callable[[], Any],
) -> Claim:
    sides: list[list[float]] = []
    for row in rows:
        if not elementwise:  # as in a plain assert, what has no truth value is an error
            all(HOLDS[sign](*pair) for sign, pair in zip(signs, pairwise(row), strict=True))
        operands = torch.stack(torch.broadcast_tensors(*map(number, row)))
        sides += operands.reshape(len(operands), -1).T.tolist()
    if any(math.isnan(value) for row in sides for value in row):
        raise AssertionError(f"{text}: a number is NaN")
    claim = Claim(line, text, signs, sides, "")
    return claim._replace(message=str(message())) if claim.failed else claim


def number(value: Any) -> torch.Tensor:
    return torch.as_tensor(value).detach().cpu().double()


def watch(tree: ast.Module, namespace: dict[str, Any], report: Callable[[Claim], None]) -> None:
    """Rewrite the script's `tree`; when it runs in `namespace`, each claim goes to `report`."""
    Rewrite().visit(tree)
    namespace[REPORT] = lambda *parts: report(evaluate(*parts))
