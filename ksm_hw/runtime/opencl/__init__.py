"""The OpenCL device runtime that TVM's wheel lacks: C++ sources, how they are built, how they are loaded."""
