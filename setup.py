"""Builds the operators' library and the extension `fastrnn._C`; all else is in pyproject.toml."""

import os
import shlex
import shutil
import sys
import sysconfig
from glob import glob
from pathlib import Path

try:
    import torch
except ImportError:
    sys.exit(f"fastrnn: no torch in {sys.executable}, against which to build. Install it first.")
from setuptools import Extension, setup
from torch.utils import cpp_extension
from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # not there when pip builds
import cuda_build

CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",  # Python's own flags ask for -g, which makes the library fifty times larger
    "-fno-math-errno",  # sqrt, exp and their kin need not set errno, so loops over them vectorise
    "-fno-trapping-math",  # nobody reads the exception flags, so both sides of a select may run
    "-ffp-contract=fast",  # a * b + c may be one fused multiply-add: faster, and rounded once
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    *(f"-isystem{path}" for path in include_paths()),  # no warnings from torch's own headers
]
# No -march=native: a wheel runs on other machines too; kernels choose instructions at run time.
# No -ffast-math: it ignores NaN and infinity, reorders sums, and makes the whole process flush
# denormals to zero.

# Apple's clang has no -fopenmp; there the kernels run on one thread.
OPENMP_FLAGS = [] if sys.platform == "darwin" else ["-fopenmp"]


def with_cuda() -> bool:
    """FASTRNN_CUDA=1 builds the CUDA half, FASTRNN_CUDA=0 does not; unset, where torch has CUDA."""
    choice = os.environ.get("FASTRNN_CUDA")
    if choice not in (None, "", "0", "1"):
        sys.exit(f"fastrnn: expected FASTRNN_CUDA to be 0 or 1, got {choice!r}.")
    if choice == "1":
        return True
    if choice == "0" or torch.version.cuda is None:
        return False
    if cuda_build.find_nvcc() is None:  # many machines with such a torch have no GPU
        print("fastrnn: no nvcc found: building for the CPU alone, without the CUDA kernels. "
              "To have them, put nvcc on the PATH or set CUDA_HOME.", file=sys.stderr)  # fmt: skip
        return False
    return True


WITH_CUDA = with_cuda()
PYTHON_MODULE = "csrc/python.cpp"


def sources() -> list[str]:
    patterns = ["csrc/*.cpp", "csrc/cpu/*.cpp"]
    if WITH_CUDA:
        patterns += ["csrc/cuda/*.cpp", "csrc/cuda/*.cu"]
    found = {path for pattern in patterns for path in glob(pattern)}
    return sorted(found - {PYTHON_MODULE})


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
        compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
        found = [name for name in compilers if shutil.which(shlex.split(name)[0])]
        if not found:
            sys.exit(
                f"fastrnn: no C++ compiler found (tried {', '.join(compilers)}). Install one:\n"
                "  Debian, Ubuntu  apt install g++       (or clang)\n"
                "  Fedora          dnf install gcc-c++   (or clang)\n"
                "  macOS           xcode-select --install\n"
                "or name one in the environment variable CXX."
            )
        os.environ["CXX"] = found[0]  # the linker's driver too, not only the compiler's
        if not Path(sysconfig.get_path("include"), "Python.h").exists():
            sys.exit(
                "fastrnn: the header Python.h is missing. Install it:\n"
                "  Debian, Ubuntu  apt install python3-dev\n"
                "  Fedora          dnf install python3-devel"
            )
        super().run()


# The environment's ninja is not on the PATH where the environment is not activated.
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]


def extension(name: str, sources: list[str], link_args: list[str]) -> Extension:
    return CppExtension(
        name,
        sources,
        include_dirs=[os.path.abspath("csrc")],
        depends=sorted(glob("csrc/**/*.*h", recursive=True)),
        extra_compile_args={"cxx": CXX_FLAGS + OPENMP_FLAGS},
        extra_link_args=OPENMP_FLAGS + link_args,
    )


def add_cuda(operators: Extension, module: Extension) -> None:
    nvcc = cuda_build.find_nvcc()
    if nvcc is None:
        sys.exit(
            "fastrnn: no nvcc found for the CUDA kernels, which FASTRNN_CUDA=1 asks for.\n"
            "Put it on the PATH or set CUDA_HOME."
        )
    home = cuda_build.toolkit(nvcc)
    cpp_extension.CUDA_HOME = str(home)  # a torch without CUDA has not looked for it
    names = " ".join(f"sm_{a}" for a in cuda_build.archs(nvcc))
    module.extra_compile_args["cxx"] = [*CXX_FLAGS, "-DFASTRNN_WITH_CUDA"]
    operators.extra_compile_args["cxx"] += [
        f'-DFASTRNN_CUDA_ARCHS="{names}"',
        f"-isystem{home / 'include'}",
    ]
    operators.extra_compile_args["nvcc"] = [
        *cuda_build.compile_flags(nvcc),
        "-Xcompiler=-fvisibility=hidden",
    ]
    # The runtime goes in whole: torch brings one too, of its own version.
    operators.library_dirs.append(str(cuda_build.library_folder(home)))
    operators.libraries += ["cudart_static", "dl", "rt", "pthread"]
    if torch.version.cuda is not None:
        # Where the weak symbols are. Being weak, they would not make a linker keep the library.
        operators.extra_link_args += ["-Wl,--no-as-needed", "-ltorch_cuda"]


operators = extension(OPERATORS, sources(), OPERATORS_LINK)
operators.libraries.remove("torch_python")
module = extension("fastrnn._C", [PYTHON_MODULE], BESIDE)
if WITH_CUDA:
    add_cuda(operators, module)

setup(
    ext_modules=[operators, module],
    cmdclass={"build_ext": build_ext},
    # One place for the objects, so that `pip install -e .` and `build_ext --inplace` share them.
    options={"build_ext": {"build_temp": "build/temp"}},
)
