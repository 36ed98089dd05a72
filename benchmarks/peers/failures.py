"""How an engine fails."""


class EngineError(Exception):
    """An engine cannot be installed, converted to, loaded or run; the message is the reason that the table gives."""


def last_words(output: str) -> str:
    """The line of a program's output that says most likely why it ended: the last that is an error, or the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() and not line.startswith("WARNING")]
    chosen = (errors or lines or ["it wrote nothing"])[-1]
    return chosen if len(chosen) <= 200 else chosen[:199] + "…"
