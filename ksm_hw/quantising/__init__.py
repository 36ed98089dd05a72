"""int8: the arithmetic, a network in its terms, the ranges of a task, and an integer model that computes with them."""
