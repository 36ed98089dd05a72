"""What a pass says of a tensor whose type it was not written for, instead of leaving it as it is in silence."""

import tvm_ffi


@tvm_ffi.register_error  # Or it would come out of a pass as a RuntimeError.
class UnknownDtypeError(ValueError):
    """A pass met a tensor of a dtype that it does not know."""


def check_dtype(pass_name: str, tensor: str, dtype: object, known: str) -> None:
    """Checks a tensor's dtype.

    Args:
        pass_name: of the pass.
        tensor: path of the parameter in the network.
        dtype: of the tensor.
        known: what the pass knows.

    Raises:
        UnknownDtypeError: the dtype is another.
    """
    if str(dtype) != known:
        raise UnknownDtypeError(f"{pass_name} knows {known}, and '{tensor}' is {dtype}.")
