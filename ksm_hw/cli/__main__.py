"""`python -m ksm_hw.cli`: the command line where the script `ksm-hw` is not installed, as on a board."""

from ksm_hw.cli import main

main()
