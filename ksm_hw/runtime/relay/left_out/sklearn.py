"""Stands before scikit-learn in Relay's processes: XGBoost, which TVM imports, imports it where it is, for seconds.

Nothing of AutoTVM's cost model needs it.
"""

raise ImportError("scikit-learn is left out in Relay's processes")
