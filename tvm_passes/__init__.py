"""Compiler passes of ksm-hw. They know TVM and arrays, never files, the command line or torch."""
