"""What the benchmarks of arm64 write and print: a page of Markdown, and the same as JSON."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown

from ksm_hw.errors import UserError
from ksm_hw.files.written import check_folder, written_file


def output_folder(text: str) -> Path:
    """A folder of the command line, which is written to behind hours of work: whether it can be is asked before."""
    try:
        check_folder(Path(text))
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(text)


def write_page(folder: Path | None, name: str, page: str, content: str) -> None:
    """Writes `NAME.md` and `NAME.json` into a folder, if there is one."""
    write_text(folder, f"{name}.md", page)
    write_text(folder, f"{name}.json", content)


def write_text(folder: Path | None, name: str, text: str) -> None:
    """Writes a file into a folder, if there is one."""
    if folder is not None:
        with written_file(folder / name) as temporary:
            temporary.write_text(text)


def show_page(page: str, content: str, as_json: bool) -> None:
    """Prints the page, or the JSON in its place."""
    if as_json:
        print(content, end="")
    else:
        Console().print(Markdown(page))
