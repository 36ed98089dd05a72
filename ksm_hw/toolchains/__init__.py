"""What makes code, and for which machine: targets, linkers, compilers, and TVM's own libraries."""
