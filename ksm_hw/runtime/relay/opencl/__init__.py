"""The OpenCL part of TVM 0.19's runtime, which its wheel leaves out and has the sources of."""
