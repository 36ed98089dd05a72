"""Chooses each method's rates on a fifth of the training images, which is not learned; test images choose nothing.

    python benchmarks/learning_rates.py --jobs 16 -o docs/learning_rates.json

Each recipe is `ksm-hw train --validation 0.2` for ten epochs at 96 pixels, in a process of its own; a GPU is used where
there is one. Prints the table of docs/comparison.md. What the file has already is not learned again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOUR = ("fashion-mnist", "clipart", "emoji", "glyphs")
TWO = ("emoji", "glyphs")
HEAD_START = "--head-start --norm-rate 1e-3 --head-rate 1e-3"
RECIPES = {
    "ksm": {
        **{f"--mask-rate {rate} --head-rate 2e-3": FOUR for rate in ("4e-4", "1e-3", "3e-3")},
        **{f"{HEAD_START} --mask-rate {rate}": FOUR for rate in ("2e-4", "1e-3")},
        "--mask-rate 3e-3 --norm-rate 1e-3 --head-rate 2e-3": TWO,
    },
    "head": {f"--head-rate {rate}": FOUR for rate in ("2e-3", "1e-2")},
    "binary": {f"--mask-rate {rate} --head-rate 2e-3": TWO for rate in ("4e-4", "1e-3", "3e-3")},
    "piggyback": {f"--mask-rate {rate} --head-rate 2e-3": TWO for rate in ("1e-4", "3e-4", "1e-3")},
    **{
        method: {f"--mask-rate {rate} --head-rate 2e-3": TWO for rate in ("2e-4", "6e-4")}
        for method in ("fine-tuning", "packnet", "cpg")
    },
}
Results = dict[str, dict[str, dict[str, float]]]  # Accuracy in 0…1 by method, recipe and task.


def accuracy(method: str, recipe: str, task: str) -> float:
    """What a recipe reaches on the images that it does not learn, in 0…1."""
    with tempfile.TemporaryDirectory() as bundle:
        common = ["--image-size", "96", "--epochs", "10", "--validation", "0.2", "--bundle", bundle, "--json"]
        what = ["--method", method, "--task", task, "--data", task]
        command = [sys.executable, "-m", "ksm_hw.cli", "train", *what, *recipe.split(), *common]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found: float = json.loads(said)["validation_accuracy"]
    return found


def table(results: Results) -> str:
    """The results as Markdown."""
    lines = [f"| method | rates | {' | '.join(FOUR)} |", "|" + " --- |" * (2 + len(FOUR))]
    for method, by_recipe in results.items():
        for recipe, by_task in by_recipe.items():
            shown = [f"{100 * by_task[task]:.1f} %" if task in by_task else "—" for task in FOUR]
            lines.append(f"| {method} | `{recipe}` | {' | '.join(shown)} |")
    return "\n".join(lines)


def main() -> None:
    """Learns what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="recipes beside each other")
    parser.add_argument("--page", action="store_true", help="print the table of what is there, learn nothing")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/learning_rates.json"))
    arguments = parser.parse_args()
    results: Results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    missing = [
        (method, recipe, task)
        for method, by_recipe in RECIPES.items()
        for recipe, tasks in by_recipe.items()
        for task in tasks
        if task not in results.get(method, {}).get(recipe, {})
    ]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = [] if arguments.page else missing
        for (method, recipe, task), found in zip(waiting, pool.map(lambda one: accuracy(*one), waiting), strict=True):
            results.setdefault(method, {}).setdefault(recipe, {})[task] = found
            arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
