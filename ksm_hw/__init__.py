"""Many vision tasks on one small device: one backbone, learned masks, compiled with Apache TVM."""

from ksm_hw.user_folders import provide_home

__version__ = "0.1.0"

provide_home()  # Before anything imports TVM.
