"""How the range of a tensor is chosen. Needs nothing: the command line has its choices from here at once."""

from typing import Literal

# The extremes; the range with the least squared error over a histogram; or the middle 99.99 % of all values.
ObserverName = Literal["minmax", "histogram", "percentile"]
DEFAULT_OBSERVER: ObserverName = "minmax"
IMAGES = 300  # That are looked at where nobody says how many.
