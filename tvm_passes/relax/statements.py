"""Walking the statements of a TIR function from Python, for which TVM has no visitor any more."""

from collections.abc import Callable

from tvm import tirx
from tvm.s_tir import SBlock, SBlockRealize

Replace = Callable[[tirx.Stmt], tirx.Stmt | None]


def replaced(statement: tirx.Stmt, replace: Replace) -> tirx.Stmt:
    """A statement with what is inside it replaced, from the outside in.

    Args:
        statement: of a function before or after lowering; other statements than loops, blocks, branches, attributes and
            sequences of statements are not entered.
        replace: answers what to take instead of a statement, or None to go on inside it.

    Returns:
        The statement itself where nothing was replaced.
    """
    new = replace(statement)
    if new is not None:
        return new
    inside = _inside(statement)
    changed = [replaced(part, replace) for part in inside]
    if all(part.same_as(old) for part, old in zip(changed, inside, strict=True)):
        return statement
    return _with(statement, changed)


def _inside(statement: tirx.Stmt) -> list[tirx.Stmt]:
    if isinstance(statement, tirx.SeqStmt):
        return list(statement.seq)
    if isinstance(statement, tirx.For | tirx.AttrStmt):
        return [statement.body]
    if isinstance(statement, SBlockRealize):
        return [statement.block.body]
    if isinstance(statement, tirx.IfThenElse):
        return [statement.then_case, *([] if statement.else_case is None else [statement.else_case])]
    return []


def _with(statement: tirx.Stmt, inside: list[tirx.Stmt]) -> tirx.Stmt:
    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt(inside)
    if isinstance(statement, tirx.For):
        return loop_with(statement, inside[0], statement.annotations)
    if isinstance(statement, tirx.AttrStmt):
        return tirx.AttrStmt(statement.node, statement.attr_key, statement.value, inside[0])
    if isinstance(statement, SBlockRealize):
        return SBlockRealize(statement.iter_values, statement.predicate, _block_with(statement.block, inside[0]))
    return tirx.IfThenElse(statement.condition, *inside)


def _block_with(block: SBlock, body: tirx.Stmt) -> SBlock:
    return SBlock(
        block.iter_vars,
        block.reads,
        block.writes,
        block.name_hint,
        body,
        block.init,
        block.alloc_buffers,
        block.match_buffers,
        block.annotations,
    )


def loop_with(loop: tirx.For, body: tirx.Stmt, annotations: dict[str, object]) -> tirx.For:
    """A loop with another body and other annotations."""
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, annotations, loop.step)
