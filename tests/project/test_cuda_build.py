"""The CUDA half of a build: for which architectures, what it says, and the hash of its sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import cuda_build

ROOT = Path(__file__).parents[2]
KNOWN = {75, 80, 86, 87, 89, 90, 100, 110, 120}
ALL = ["75", "80", "86", "87", "89", "90a", "100", "110", "120"]


@pytest.fixture
def archs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    monkeypatch.setattr(cuda_build, "known_archs", lambda nvcc: KNOWN)

    def choose(
        cuda: str | None = None,
        wanted: str | None = None,
        gpus: tuple[tuple[int, int], ...] = (),
        torch_has_cuda: bool = True,
        nvcc: str | None = "nvcc",
    ) -> list[str]:
        for name, value in (("FASTRNN_CUDA", cuda), ("TORCH_CUDA_ARCH_LIST", wanted)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        return cuda_build.archs_to_build(nvcc, torch_has_cuda, list(gpus))

    return choose


Archs = Callable[..., list[str]]


def test_kernels_are_built_for_the_gpu_that_is_there(archs: Archs) -> None:
    assert archs(gpus=((9, 0), (8, 0), (9, 0))) == ["80", "90a"]
    assert archs(gpus=((8, 7),)) == ["87"]
    assert archs(cuda="1", gpus=((8, 6),)) == ["86"]
    assert archs(wanted="native", gpus=((8, 6),)) == ["86"]
    assert archs(cuda="0", gpus=((9, 0),)) == []
    assert archs(gpus=((7, 0), (8, 0))) == ["80"]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("8.0", ["80"]),
        ("9.0a+PTX;8.6 8.0", ["80", "86", "90a"]),
        ("Hopper", ["90a"]),
        ("Turing;Ampere+PTX", ["75", "80", "86"]),
        ("Ampere+Tegra", ["87"]),
    ],
)
def test_an_architecture_list_is_kept(archs: Archs, wanted: str, expected: list[str]) -> None:
    assert archs(wanted=wanted) == expected
    assert archs(wanted=wanted, gpus=((7, 5),)) == expected


Capture = pytest.CaptureFixture[str]


def test_architectures_too_old_are_left_out(archs: Archs, capsys: Capture) -> None:
    assert archs(wanted="6.0;7.0;7.5;8.0+PTX") == ["75", "80"]
    assert capsys.readouterr().err == (
        "fastrnn: skipping 6.0 7.0 of TORCH_CUDA_ARCH_LIST: the kernels need 7.5 or later.\n"
    )
    assert archs(wanted="Volta") == []
    assert "LIST=Volta names no architecture of 7.5 or later." in capsys.readouterr().err


def test_without_a_gpu_the_build_is_for_the_cpu(archs: Archs, capsys: Capture) -> None:
    assert archs() == []
    assert capsys.readouterr().err == (
        "fastrnn: building for the CPU only, without the CUDA kernels: no GPU is visible. "
        "FASTRNN_CUDA=1 builds them for every architecture.\n"
    )
    assert archs(torch_has_cuda=False) == archs(torch_has_cuda=False, wanted="8.0") == []
    assert archs(cuda="0") == []
    assert capsys.readouterr().err == ""
    assert archs(cuda="1") == archs(cuda="1", torch_has_cuda=False) == ALL


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"gpus": ((9, 0),), "nvcc": None}, "no nvcc was found. Put it on the PATH or set CUDA_"),
        ({"gpus": ((7, 0),)}, "the GPU is older than compute capability 7.5."),
        ({"gpus": ((13, 0),)}, "nvcc does not support sm_130. Install a newer CUDA toolkit."),
    ],
    ids=["nvcc", "old", "new"],
)
def test_a_gpu_that_the_build_cannot_serve(
    archs: Archs, capsys: Capture, given: dict[str, object], why: str
) -> None:
    assert archs(**given) == []
    assert why in capsys.readouterr().err
    with pytest.raises(SystemExit, match=f"^fastrnn: FASTRNN_CUDA=1 asks for .* but {why}"):
        archs(cuda="1", **given)


def test_variables_that_say_nothing(archs: Archs) -> None:
    with pytest.raises(SystemExit, match="expected FASTRNN_CUDA to be 0 or 1, got 'yes'"):
        archs(cuda="yes")
    for wanted in ("Hoper", "sm_90", "90"):
        with pytest.raises(SystemExit, match=f"expected TORCH_CUDA_ARCH_LIST .* got '{wanted}'"):
            archs(wanted=wanted)


def test_a_build_announces_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "2")
    cpu, cuda = (cuda_build.announcement(archs) for archs in ([], ALL))
    assert cpu == "compiling with 2 jobs, in about 1 min: CPU kernels"
    assert cuda.endswith(" min: CPU kernels, CUDA kernels for 75 80 86 87 89 90a 100 110 120")
    assert int(cuda.split()[6]) > 2


def test_the_hash_is_of_what_is_compiled(tmp_path: Path) -> None:
    def hash_of(text: str) -> str:
        (tmp_path / "x.cu").write_text(text)
        return cuda_build.source_hash([tmp_path / "x.cu"])

    first = hash_of('int f(int a) { return a + 1; }  // one\nconst char* s = "//x";\n')
    assert len(first) == 12
    assert first == hash_of('/* two */ int f(int a) {\n  return a+1;\n}\nconst char *s = "//x";')
    assert first != hash_of('int f(int a) { return a + 2; }\nconst char* s = "//x";\n')
    assert first != hash_of('int f(int a) { return a + 1; }\nconst char* s = "//y";\n')
    assert hash_of('auto s = R"(a  /* b */)";') != hash_of('auto s = R"(a )";')
    assert hash_of("char c = '\"'; int x; // a") == hash_of("char c = '\"'; int x; // b")


def test_the_hash_knows_the_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = cuda_build.sources()
    assert ROOT / "csrc/cuda/cluster.cuh" in sources
    before = cuda_build.source_hash(sources)
    monkeypatch.setattr(cuda_build, "FLAGS", [*cuda_build.FLAGS, "-G"])
    assert cuda_build.source_hash(sources) != before
