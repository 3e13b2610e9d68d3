"""Builds the operators' library and the extension `fastrnn._C` for the installed torch."""

import json
import os
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

OLDEST_TORCH = (2, 11)


def import_torch() -> None:
    """Import the torch that will run what is built here; no other will do.

    pip builds in isolation: with the interpreter that it installs for, but without that
    interpreter's packages. So they are looked up here.
    """
    try:
        import torch
    except ModuleNotFoundError:
        # Without the environment variables that pip isolates with.
        code = "import sys; print(*sys.path, sep='\\n')"
        run = subprocess.run([sys.executable, "-EPc", code], capture_output=True, text=True)
        sys.path += [path for path in run.stdout.splitlines() if path not in sys.path]
        try:
            import torch
        except ModuleNotFoundError:
            sys.exit(
                "fastrnn: the extension is compiled against the torch that will run it, and "
                f"{sys.executable} has none.\nInstall torch first; then run\n"
                "  pip install setuptools ninja pybind11\n"
                "  pip install --no-build-isolation ."
            )
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        sys.exit(
            f"fastrnn: expected torch {'.'.join(map(str, OLDEST_TORCH))} or later, got "
            f"{torch.__version__} in {os.path.dirname(torch.__file__)}.\nUpdate it first:\n"
            "  pip install --upgrade torch"
        )


import_torch()
import setuptools
import torch
from setuptools import Extension
from torch.utils import cpp_extension
from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

import cpu_build
import cuda_build

CXX_FLAGS = [
    *cpu_build.FLAGS,
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    *(f"-isystem{path}" for path in include_paths()),  # no warnings from torch's own headers
]

NVCC = cuda_build.find_nvcc()
CUDA_ARCHS = cuda_build.archs_to_build(
    nvcc=NVCC,
    torch_has_cuda=torch.version.cuda is not None,
    gpus=[torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())],
)
PYTHON_MODULE = "csrc/python.cpp"

# What the build is for, written beside the libraries; fastrnn/_library.py reads it.
BUILT_FOR = {"torch": torch.__version__, "python": "{}.{}".format(*sys.version_info)}


def sources() -> list[str]:
    patterns = ["csrc/*.cpp", "csrc/cpu/*.cpp"]
    if CUDA_ARCHS:
        patterns += ["csrc/cuda/*.cpp", "csrc/cuda/*.cu"]
    found = {path for pattern in patterns for path in glob(pattern)}
    return sorted(found - {PYTHON_MODULE})


GENERATED = Path("build/generated")
OPERATORS = "fastrnn.libfastrnn"  # needs libtorch but no Python, so that C++ programs can load it
OPERATORS_FILE = "libfastrnn.so"
# Each library is found beside the one that needs it.
if sys.platform == "darwin":
    OPERATORS_LINK = [f"-Wl,-install_name,@rpath/{OPERATORS_FILE}"]
    BESIDE = ["-Wl,-rpath,@loader_path"]
else:
    OPERATORS_LINK = [f"-Wl,-soname,{OPERATORS_FILE}", "-Wl,-z,defs"]
    BESIDE = ["-Wl,-rpath,$ORIGIN"]


class build_ext(BuildExtension):  # distutils finds the options below by this name
    def get_ext_filename(self, name: str) -> str:
        if name.split(".")[-1] == OPERATORS.split(".")[-1]:
            return os.path.join(*name.split(".")[:-1], OPERATORS_FILE)
        return str(super().get_ext_filename(name))

    def build_extension(self, ext: Extension) -> None:
        if ext.name != OPERATORS:
            ext.extra_objects = [self.get_ext_fullpath(OPERATORS)]
        super().build_extension(ext)

    def run(self) -> None:
        # The linker's driver too, not only the compiler's.
        os.environ["CXX"] = cpu_build.find_compiler()
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            sys.exit(
                "fastrnn: the header Python.h is missing. Install it:\n"
                "  Debian, Ubuntu  apt install python3-dev\n"
                "  Fedora          dnf install python3-devel"
            )
        cuda_build.say(cuda_build.announcement(CUDA_ARCHS))
        if CUDA_ARCHS:
            cuda_build.write_header(GENERATED, CUDA_ARCHS, NVCC)
        # Removed before the libraries change and written after: a broken build fits no torch.
        record = Path(self.get_ext_fullpath(OPERATORS)).with_name("_built_for.json")
        record.unlink(missing_ok=True)
        super().run()
        record.write_text(json.dumps(BUILT_FOR))


def extension(name: str, sources: list[str], link_args: list[str]) -> Extension:
    return CppExtension(
        name,
        sources,
        include_dirs=[os.path.abspath("csrc")],
        depends=sorted(glob("csrc/**/*.*h", recursive=True)),
        extra_compile_args={"cxx": CXX_FLAGS + cpu_build.MORE_FLAGS},
        extra_link_args=cpu_build.LIBRARIES + link_args + cpu_build.MORE_FLAGS,
    )


def add_cuda(operators: Extension, module: Extension, nvcc: str) -> None:
    home = cuda_build.toolkit(nvcc)
    cpp_extension.CUDA_HOME = str(home)  # a torch without CUDA has not looked for it
    module.extra_compile_args["cxx"] = [*CXX_FLAGS, "-DFASTRNN_WITH_CUDA"]
    operators.extra_compile_args["cxx"] += [
        f"-isystem{home / 'include'}",
        f"-I{GENERATED.resolve()}",
    ]
    operators.extra_compile_args["nvcc"] = [
        *cuda_build.compile_flags(CUDA_ARCHS, nvcc),
        "-Xcompiler=-fvisibility=hidden",
    ]
    # The runtime goes in whole: torch brings one too, of its own version.
    operators.library_dirs.append(str(cuda_build.library_folder(home)))
    operators.libraries += cuda_build.LIBRARIES


def setup() -> None:
    operators = extension(OPERATORS, sources(), OPERATORS_LINK)
    operators.libraries.remove("torch_python")
    module = extension("fastrnn._C", [PYTHON_MODULE], BESIDE)
    if CUDA_ARCHS:
        add_cuda(operators, module, NVCC)
    # The environment's ninja is not on the PATH if the environment is not activated.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    setuptools.setup(
        ext_modules=[operators, module],
        cmdclass={"build_ext": build_ext},
        # One place for the objects of one torch: `pip install .` and `make build` share them.
        options={"build_ext": {"build_temp": f"build/torch-{torch.__version__}", "force": True}},
    )
