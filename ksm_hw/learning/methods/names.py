"""The names of the methods, and what people call them. Needs no torch, so that the command line can show them."""

TITLES = {
    "ksm": "KSM soft masks",
    "binary": "binary masks",
    "piggyback": "Piggyback",
    "packnet": "PackNet",
    "cpg": "CPG",
    "head": "head only",
    "fine-tuning": "fine-tuning",
}
