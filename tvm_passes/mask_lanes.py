"""How much of a mask compiled code reads at once. Nothing here imports TVM: who only runs code must give it as much."""

LANES = 8
"""Values in a vector: a byte of the mask. CPUs with shorter vectors take two.

An artifact's parameters have at least as many soft values, so another number is another format of artifacts: count up
`FORMAT_VERSION` of its manifest.
"""
