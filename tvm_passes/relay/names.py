"""Names in compiled modules, for those who only run them: nothing here imports TVM."""

INPUT = "input"


def weight_name(number: int) -> str:
    """The parameter of `main` that takes a weight, by its place in what `rewrite` gives."""
    return f"weight_{number}"
