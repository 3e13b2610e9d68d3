"""docs/benchmarks.md: what the results say, in words and small tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks import tables
from benchmarks.classes import kinds_of
from benchmarks.compare import MODES, peer_names, scaling
from benchmarks.gpu import report as gpu_report
from benchmarks.markdown import listed, mean_and_least, number, reflow, table
from benchmarks.prose import INTRODUCTION, METHOD, RUN, WHY
from benchmarks.provenance import (
    UNKNOWN,
    WITH_AVX512,
    capability,
    generation,
    processor,
    short_processor,
    source,
)
from benchmarks.results import (
    Files,
    call_microseconds,
    cpu_columns,
    kind_of,
    lost,
    of_kind,
    one_thread,
    page_of,
    with_avx512,
)
from benchmarks.tables import micro_titles, peer_ratios, ratios_of, threads_of

Record = dict[str, Any]

NOTHING = "Nothing has been measured yet."
AUTOGRAD_SHARE = 1 / 3  # of our time, in an empty module: from here on it is why a row is lost
GEMM_SHARE = 0.8  # of the fastest matrix product: from here on there is little left to gain


def class_table(documents: Sequence[Record], with_capability: bool) -> str:
    """Of each processor: geometric mean and least ratio of each class, on one thread."""
    columns = [(d, mode) for d in documents for mode in MODES]

    def title(document: Record, mode: str) -> str:
        words = [short_processor(document["machine"])]
        words += [capability(document["machine"])] if with_capability else []
        return ", ".join([*words, mode])

    header = ["class", *(title(d, mode) for d, mode in columns)]
    kinds = kinds_of([r for d in documents for r in one_thread(d)])
    lines = [
        [words, *(mean_and_least(ratios_of(one_thread(d), kind=k, mode=m)) for d, m in columns)]
        for k, words in kinds.items()
    ]
    return table(header, lines)


def command_of(document: Record) -> str:
    """The command with the ceiling of the instruction set, where it was below the processor's."""
    limited = capability(document["machine"]) == "AVX2" and generation(document["machine"]["cpu"])
    ceiling = "ATEN_CPU_CAPABILITY=avx2 " if limited in WITH_AVX512 else ""
    return f"{ceiling}{document['command']}"


def sources(documents: Iterable[Record]) -> str:
    """A line for each column: what it was measured on, and the command."""
    return "\n".join(
        f"- {source(d.get('machine') or d['machine_info'])}"
        + (f": `{command_of(d)}`" if "command" in d else f"; command {UNKNOWN}")
        for d in documents
    )


def named(machine: Record) -> str:
    return f"{short_processor(machine)} with {capability(machine)}"


def slower(rows: Sequence[Record], where: str) -> str:
    """Which rows are slower than nn.RNN, or which is nearest to it."""
    below = [f"`{r['id']}` {r['mode']} ({number(r['ratio'])})" for r in rows if r["ratio"] < 1]
    if below:
        return f"On {where}, slower than `torch.nn.RNN`: {listed(below)}."
    least = min(rows, key=lambda r: float(r["ratio"]))
    return (
        f"On {where}, none of {len(rows)} cells is slower than `torch.nn.RNN`; the least ratio is "
        f"{number(least['ratio'])}, in {least['mode']} of `{least['id']}`."
    )


def two_threads(document: Record) -> str:
    kinds = {r["id"]: r["kind"] for r in document["rows"]}
    found: dict[str, list[float]] = {}
    for (shape, _), ratio in scaling(document["rows"]).items():
        found.setdefault(kinds[shape], []).append(ratio)
    parts = [f"{mean_and_least(found[k])} times as fast on {k} shapes" for k in ("medium", "large")
             if k in found]  # fmt: skip
    return f"On two threads fastrnn is {listed(parts)} as on one." if parts else ""


def intel(documents: Sequence[Record]) -> str:
    """What to expect where the processor is not AMD's; nothing if there are results."""
    if not all("AMD" in d["machine"]["cpu"] for d in documents):
        return ""
    words = "All measurements on the CPU are from AMD processors."
    if any(generation(d["machine"]["cpu"]) in WITH_AVX512 and d not in with_avx512(documents)
           for d in documents):  # fmt: skip
        words += (
            " Those with AVX2 are from a processor that has AVX-512, with "
            "`ATEN_CPU_CAPABILITY=avx2` set."
        )
    for d in with_avx512(documents)[:1]:
        speeds = d["gemm_gflops"].get("float32, threads: 1", {})
        best = max(speeds, key=lambda name: float(speeds[name])) if speeds else "torch.mm"
        if best != "torch.mm":
            words += (
                " On Intel, where MKL runs at full rate, expect large sizes to gain less: here "
                f"`torch.mm`, which `torch.nn.RNN` calls, reaches {number(speeds['torch.mm'])} "
                f"GFLOP/s in float32 on one thread, and {best} {number(speeds[best])}."
            )
    return words


def against_torch(files: Files) -> Iterator[str]:
    documents = cpu_columns(files)
    yield "## Against torch.nn.RNN\n"
    if not documents:
        yield f"{NOTHING}\n"
        return
    best = with_avx512(documents)[:1] or documents[:1]
    yield "One thread, float32, tanh, save for the variants (ReLU, bidirectional and so on).\n"
    yield class_table(documents, with_capability=True)
    yield f"{sources(documents)}\n"
    yield "![Speed relative to torch.nn.RNN, by class](images/speed.png)\n"
    words = [slower(one_thread(d), named(d["machine"])) for d in documents]
    yield " ".join(filter(None, [*words, two_threads(best[0])])) + "\n"
    if words := intel(documents):
        yield f"{words}\n"
    names = {id(d): name for name, d in of_kind(files, "cpu").items()}
    yield "Each shape is a dot:\n"
    yield f"![Ratio of each shape, by class](images/ratio-{names[id(best[0])]}.png)\n"


def cause(r: Record, peer: str, empty: float | None) -> str:
    """Why a row is lost, as far as the results say."""
    ours = r["contestants"]["fastrnn"]["microseconds"]
    if r["mode"] == "training" and empty is not None and empty >= AUTOGRAD_SHARE * ours:
        return (
            "**Small training steps.** Autograd takes a large part of our time: "
            f"{number(empty)} µs with a module that computes nothing. The other libraries' steps "
            "are prepared beforehand, and record no graph"
        )
    if r["shape"]["seq_len"] == 1 and peer == "oneDNN":
        return (
            "**Single time steps.** oneDNN's weights are transposed before it is timed; ours are "
            "rearranged in the call, or read in place"
        )
    if r["share_of_gemm"] >= GEMM_SHARE:
        return (
            f"**Large products.** Little is left to gain: ours run at {GEMM_SHARE:.0%} or more of "
            "the fastest matrix product"
        )
    return "**No cause found**"


def lost_cells(document: Record, empty: float | None) -> Iterator[str]:
    found: dict[str, dict[str, list[str]]] = {}
    for r, peer, ratio in lost(document):
        cells = found.setdefault(cause(r, peer, empty), {})
        cells.setdefault(f"`{r['id']}` {r['mode']}", []).append(f"{peer} {number(ratio)}")
    for why, cells in found.items():
        named = "; ".join(f"{row} ({', '.join(peers)})" for row, peers in cells.items())
        yield f"- {why}: {named}."


def peer_table(documents: Sequence[Record]) -> str:
    threads = {d["rows"][0]["threads"]: d["rows"] for d in documents}
    names = dict.fromkeys(name for rows in threads.values() for name in peer_names(rows))
    columns = [(rows, n, mode) for n, rows in sorted(threads.items()) for mode in MODES]
    header = ["against", *(f"{mode}, {threads_of(n)}" for _, n, mode in columns)]
    lines = [
        [name, *(mean_and_least(peer_ratios(rows, name, mode=m)) for rows, _, m in columns)]
        for name in names
    ]
    return table(header, lines)


def peer_counts(document: Record) -> tuple[int, int]:
    """Cells in which another library is ahead, and all."""
    rows = document["rows"]
    return len(list(lost(document))), sum(len(peer_ratios(rows, n)) for n in peer_names(rows))


def against_peers(files: Files) -> Iterator[str]:
    peers = of_kind(files, "peers")
    if not peers:
        return
    first = min(peers.values(), key=lambda d: int(d["rows"][0]["threads"]))
    machine = first["machine"]
    names = {"JAX": "jax", "ONNX Runtime": "onnxruntime", "oneDNN": "onednn"}
    versions = [f"{k} {machine.get(v, '(version not recorded)')}" for k, v in names.items()]
    yield "## Against other libraries\n"
    yield (
        f"{listed(versions)}, on the rows in float32 with sequences of equal length. JAX's step is "
        "one compiled function, in training the value and all gradients. ONNX Runtime's is a "
        "session's run with bound inputs and outputs; it does not train. oneDNN's are its two "
        "primitives, called from C++, with the weights transposed and the memory for the gradients "
        "allocated beforehand.\n"
    )
    yield peer_table(list(peers.values()))
    yield f"{sources(peers.values())}\n"
    empty = call_microseconds(files).get(("B1-T10-I1-H32", "training", "empty module"))
    number_of, everything = peer_counts(first)
    threads = threads_of(first["rows"][0]["threads"])
    if number_of:
        yield f"On {threads} another library is ahead in {number_of} of {everything} cells:\n"
        yield "\n".join(lost_cells(first, empty)) + "\n"
    else:
        yield f"On {threads} no other library is ahead in any of {everything} cells.\n"
    for name, document in peers.items():
        if document is not first and (ahead := peer_counts(document))[0]:
            n = threads_of(document["rows"][0]["threads"])
            yield (f"On {n} they are ahead in {ahead[0]} of {ahead[1]}, shown in the "
                   f"[table](benchmarks/{page_of(name, document)}).\n")  # fmt: skip
    [stem] = [name for name, d in peers.items() if d is first]
    yield f"![Other libraries' time divided by ours, by class](images/ratio-{stem}.png)\n"


def leaky(files: Files) -> Iterator[str]:
    for name, document in of_kind(files, "leaky").items():
        yield "## Leaky RNNs\n"
        yield (
            "`LeakyRNN`, in the rate form with one fixed leak, beside `fastrnn.RNN` in the same "
            "shape, and beside the loop over time that people write by hand, one thread. Against "
            "`fastrnn.RNN` the ratio shows what the leak costs: "
            f"[all forms](benchmarks/{page_of(name, document)}).\n"
        )
        yield tables.leaky_classes(document)
        yield f"{sources([document])}\n"


def on_gpu(files: Files) -> Iterator[str]:
    for name, document in of_kind(files, "gpu").items():
        rows = gpu_report.measured_rows(document)
        if not any(gpu_report.ratio_of(r, "eager") for _, r in rows):
            continue
        gpu = document["machine"].get("gpu", document["card"])
        yield f"## On a GPU: {gpu}\n"
        yield (f"Against `torch.nn.RNN` on cuDNN, eager, in {gpu_report.SETTINGS_WORDS}; "
               f"{len(rows)} rows.\n")  # fmt: skip
        yield gpu_report.class_table(rows, ["eager"])
        yield f"{sources([document])}\n"
        yield gpu_report.slower(rows)
        yield f"![Ratio of each shape, by class](images/ratio-{name}.png)\n"


def calls(files: Files) -> str:
    """What ten steps of a row cost, as a sentence."""
    found = call_microseconds(files)
    sizes = "B1-T10-I1-H32"
    ours, theirs = (found.get((sizes, "inference", form)) for form in ("module", "nn.RNN"))
    if ours is None or theirs is None:
        return ""
    return (f"Ten time steps of one row and 32 units take {number(theirs)} µs there, and "
            f"{number(ours)} µs here.")  # fmt: skip


def limit(files: Files) -> str:
    """How near the large rows are to the fastest matrix product."""
    documents = with_avx512(cpu_columns(files))
    shares = [r["share_of_gemm"] for d in documents[:1] for r in one_thread(d)
              if r["kind"] == "large"]  # fmt: skip
    if not shares:
        return ""
    ends = "–".join(dict.fromkeys(f"{x * 100:.0f}" for x in (min(shares), max(shares))))
    return (f"Large sizes are bound by matrix products: on one thread they run at {ends}% of the "
            "fastest matrix product that torch offers on the machine.")  # fmt: skip


def kernels(files: Files) -> Iterator[str]:
    found = call_microseconds(files)
    if not found:
        return
    forms = list(dict.fromkeys(form for _, _, form in found))
    rows = dict.fromkeys((sizes, mode) for sizes, mode, _ in found)
    lines = [[f"`{s}`, {mode}", *(number(found.get((s, mode, form))) for form in forms)]
             for s, mode in rows]  # fmt: skip
    yield "## The overhead of a call\n"
    yield (
        "What a call costs where there is little to compute, in microseconds. The empty module "
        "computes nothing: it shows what Python, torch and autograd take.\n"
    )
    yield table(["call", *forms], lines)
    documents = of_kind(files, "kernels")
    yield f"{sources(documents.values())}\n"
    name = next(iter(documents))
    yield f"[More of these](benchmarks/{name}.md): {title_of(documents[name]).lower()}.\n"


def machines(files: Files) -> Iterator[str]:
    found = {}
    for document in files.values():
        machine = document.get("machine") or document["machine_info"]
        where = [machine["gpu"]] if "gpu" in machine else []
        where += [processor(machine), f"{machine.get('processors', '?')} processors"]
        where += [machine.get("system", "system not recorded")]
        found[", ".join(where)] = f"Python {machine.get('python', '(version not recorded)')}"
    yield "## Machines\n"
    yield "\n".join(f"- {where}; {python}" for where, python in found.items()) + "\n"


def title_of(document: Record) -> str:
    """Of the page of full tables of a results file."""
    machine = document.get("machine", {})
    match kind := kind_of(document):
        case "cpu":
            return f"Every shape on {short_processor(machine)}, {capability(machine)}"
        case "peers":
            return f"Beside other libraries, {threads_of(document['rows'][0]['threads'])}"
        case "gpu":
            return f"Every shape on {machine.get('gpu', document['card'])}"
        case "kernels":
            return listed(micro_titles(document)).capitalize()
        case _:
            return TITLES[kind]


TITLES = {
    "sweep": "Time per step against hidden size, length and batch",
    "profile": "Where the time of a call goes",
    "leaky": "LeakyRNN beside RNN and a loop",
}


def full_tables(files: Files) -> Iterator[str]:
    pages = [(title_of(d), f"benchmarks/{page_of(name, d)}") for name, d in files.items()]
    yield "## Full tables\n"
    yield "\n".join(f"- [{title}]({path})" for title, path in pages) + "\n"


def page(files: Files) -> str:
    """docs/benchmarks.md."""
    parts = "\n".join(
        [
            INTRODUCTION,
            *against_torch(files),
            *against_peers(files),
            *leaky(files),
            *on_gpu(files),
            WHY.format(calls=calls(files), limit=limit(files)),
            *kernels(files),
            METHOD,
            *machines(files),
            RUN,
            *full_tables(files),
        ]
    )
    return reflow(parts)
