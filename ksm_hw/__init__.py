"""Many vision tasks on one small device: one backbone, learned masks, compiled with Apache TVM."""

__version__ = "0.1.0"
