"""TVM without its compiler, in processes of their own: nothing else is loaded, and logits are the same, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tvm

from ksm_hw.errors import UserError
from ksm_hw.runtime.session import Session
from ksm_hw.runtime.tvm_import import carry_errors


def output_of(code: str, *arguments: str) -> list[str]:
    """What code prints in a fresh process, by lines."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("TVM_")}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout.splitlines()


def test_neither_the_compiler_nor_torch_is_loaded() -> None:
    code = (
        "import sys\n"
        "from ksm_hw.runtime.tvm_import import import_tvm_runtime\n"
        "import_tvm_runtime()\n"
        "import tvm, tvm_ffi\n"
        "print('libtvm_compiler' in open('/proc/self/maps').read(), bool(sys.modules.get('torch')))\n"
        "print(tvm_ffi.register_object.__name__, tvm_ffi.registry.register_object.__name__)\n"
        # A class that the runtime has and one that it has not.
        "print(hasattr(tvm.runtime.Module, '__tvm_ffi_type_info__'), tvm.ir.IRModule.__name__)\n"
    )
    assert output_of(code) == ["False False", "register_object register_object", "True IRModule"]


def test_what_boards_and_relay_import_brings_no_tvm_with_its_compiler() -> None:
    code = (
        "import sys\n"
        "import ksm_hw.boards.server, ksm_hw.boards.open_session, ksm_hw.runtime.remote_session\n"
        "print('tvm' in sys.modules, 'torch' in sys.modules)\n"
    )
    assert output_of(code) == ["False False"]


def test_a_session_gives_the_same_logits(artifact: Path, tmp_path: Path) -> None:
    session = Session.load(artifact)
    images = np.random.default_rng(0).standard_normal(session.manifest.input_shape).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys\n"
        "from ksm_hw.runtime.tvm_import import import_tvm_runtime\n"
        "import_tvm_runtime()\n"
        "import numpy as np\n"
        "from ksm_hw.runtime.session import Session\n"
        "session = Session.load(sys.argv[1])\n"
        "for task in session.tasks:\n"
        "    print(session.run(np.load(sys.argv[2]), task).tobytes().hex())\n"
        "assert session.measure_run(3) and session.measure_copies(3)\n"
    )
    expected = [session.run(images, task).tobytes().hex() for task in session.tasks]
    assert output_of(code, str(artifact), str(tmp_path / "images.npy")) == expected


def test_a_process_that_has_tvm_keeps_it() -> None:
    code = (
        "import tvm, os\n"
        "from ksm_hw.runtime.tvm_import import import_tvm_runtime\n"
        "import_tvm_runtime()\n"
        "print(tvm.get_global_func('relax.transform.FuseOps', allow_missing=True) is None)\n"
        "print('TVM_USE_RUNTIME_LIB' in os.environ)\n"
    )
    assert output_of(code) == ["False", "False"]


@pytest.mark.parametrize("error", [UserError("the disk is full"), KeyboardInterrupt()], ids=["UserError", "Ctrl-C"])
def test_errors_come_out_of_passes_as_what_they_are(error: BaseException) -> None:
    @tvm.ir.transform.module_pass(opt_level=0, name="Fails")
    class Fails:
        def transform_module(self, _module: tvm.IRModule, _context: tvm.ir.transform.PassContext) -> tvm.IRModule:
            raise error

    carry_errors()
    with pytest.raises(type(error), match=f"^{error}$"):
        tvm.ir.transform.Sequential([Fails()])(tvm.IRModule({}))


def test_torch_works_behind_tvm() -> None:
    code = (
        "import sys\n"
        "from ksm_hw.runtime.tvm_import import import_tvm_before_torch\n"
        "import_tvm_before_torch()\n"
        "print('torch' in sys.modules, 'tvm' in sys.modules)\n"
        "import torch, tvm\n"
        "print(tvm.runtime.from_dlpack(torch.arange(3)).numpy().tolist())\n"
        "import_tvm_before_torch()\n"
        "print(sys.modules['torch'] is torch)\n"
    )
    assert output_of(code) == ["False True", "[0, 1, 2]", "True"]


def test_a_target_brings_no_torch() -> None:
    code = (
        "import sys\n"
        "from ksm_hw.toolchains.targets import load_target\n"
        "load_target('host')\n"
        "print('torch' in sys.modules, 'tvm' in sys.modules)\n"
    )
    assert output_of(code) == ["False True"]
