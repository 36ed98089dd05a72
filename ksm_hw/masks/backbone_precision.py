"""In which types a backbone's weights may lie at rest. Needs nothing: the command line has its choices from here."""

from typing import Literal

RoundedPrecision = Literal["float16", "int8"]
BackbonePrecision = Literal["float32", "float16", "int8"]
