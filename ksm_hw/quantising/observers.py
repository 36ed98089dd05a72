"""What calibration can be asked for. Needs nothing: the command line has its choices from here at once."""

from typing import Literal

# How the range of a tensor is chosen: the extremes; the one with the least squared error over a histogram; or the
# middle 99.99 % of all values.
ObserverName = Literal["minmax", "histogram", "percentile"]
DEFAULT_OBSERVER: ObserverName = "minmax"
IMAGES = 300  # That are looked at where nobody says how many.

# Of which layers the biases are corrected by what rounding shifts their sums by on the images.
BiasCorrection = Literal["none", "first", "all"]
DEFAULT_CORRECTION: BiasCorrection = "all"
CORRECTED_BY = 100  # The first of the images; all, where there are fewer.
