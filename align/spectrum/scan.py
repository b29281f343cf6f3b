"""The signal-to-noise ratio of every matrix of a model, one tensor at a time, straight from its safetensors files.

Format of a safetensors file: 8 bytes with the length of a JSON header, the header, the data
(https://github.com/huggingface/safetensors#format). Read by hand, because its numpy interface knows no bfloat16 and
a scan needs no torch until a large matrix comes. Figures are kept in `$XDG_CACHE_HOME/align/spectrum`.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align.errors import AlignError
from align.run_folder import files as run_files
from align.spectrum import choose, noise
from align.spectrum.choose import Matrix, Record
from align.spectrum.noise import Measure

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

_INDEX = "model.safetensors.index.json"
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes of an entry
_COPY_AGAIN = "copy or download the model again"
IN_PROCESS = 2e10  # operations, about a second: less is not worth starting a process


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file; `begin` and `end` are bytes from the start of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def matrices(self) -> list[Matrix]:
        """What is scanned of it: a 2-D weight, or each expert of a 3-D tensor."""
        return choose.weight_matrices(self.name, self.shape)


def matrices(folder: Path) -> list[Matrix]:
    """The modules that a scan of a folder would measure, from the headers alone.

    Raises:
        AlignError: as `scan`.
    """
    found = choose.in_largest_stack(matrix for tensor in _tensors(folder) for matrix in tensor.matrices())
    if not found:
        raise AlignError(f"'{folder}' has no weight matrix in a transformer layer", "name a folder of a language model")
    return found


def scan(
    folder: Path,
    estimator: str = "mp",
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Record]:
    """Measure every 2-D weight of a transformer layer, and every expert of a 3-D tensor.

    Embeddings, head, norms and biases are left out, and so are the smaller stacks of a model that has several.

    Args:
        folder: holds model.safetensors, or shards with their index.
        estimator: `mp` or `reference`; see noise.py.
        workers: processes, each of one thread and with one matrix at a time; default: one a core.
        progress: called with the number of measured matrices and of those to measure; not at all if all is known.

    Returns:
        records by layer, then type, then expert.

    Raises:
        AlignError: no such files, a damaged file, a quantised tensor, one with NaN, or an unknown estimator.
    """
    noise.check_estimator(estimator)
    wanted = matrices(folder)
    names = {matrix.name for matrix in wanted}
    tensors = [t for t in _tensors(folder) if names.intersection(m.name for m in t.matrices())]
    entries = {tensor.name: _entry(tensor, estimator) for tensor in tensors}
    found: dict[str, Record] = {}
    missing: list[Tensor] = []
    for tensor in tensors:
        known = _cached(entries[tensor.name], tensor)
        found.update({record.name: record for record in known})
        if not known:
            missing.append(tensor)
    jobs = sorted((job for tensor in missing for job in _jobs(tensor, estimator)), key=lambda job: -_work(job))
    left = {tensor.name: (tensor, len(tensor.matrices())) for tensor in missing}
    for done, (job, measure) in enumerate(_measured(jobs, workers or len(os.sched_getaffinity(0))), start=1):
        found[job["matrix"]["name"]] = _record(Matrix(**job["matrix"]), measure)
        tensor, count = left[job["tensor"]]
        left[job["tensor"]] = (tensor, count - 1)
        if count == 1:
            _keep(entries[tensor.name], [found[matrix.name] for matrix in tensor.matrices()])
        if progress:
            progress(done, len(jobs))
    return [found[matrix.name] for matrix in wanted]


def scan_tensors(tensors: Iterable[tuple[str, torch.Tensor]], estimator: str = "mp") -> list[Record]:
    """Measure tensors in memory, one after the other; nothing is cached.

    Args:
        tensors: names as in a state dict, and tensors of any float type and device; what is no weight matrix of a
            layer is passed over. A generator may make each one when it is asked for.
        estimator: `mp` or `reference`.

    Raises:
        AlignError: a quantised tensor, one with NaN, or an unknown estimator.
    """
    noise.check_estimator(estimator)
    found: list[Record] = []
    for name, tensor in tensors:
        shape = tuple(tensor.shape)
        if choose.is_weight(name, shape) and not (tensor.is_floating_point() and tensor.element_size() > 1):
            raise _quantised([name], "the model", str(tensor.dtype).removeprefix("torch."))
        for number, matrix in enumerate(choose.weight_matrices(name, shape)):
            part = tensor if len(shape) == 2 else tensor[number]
            values = noise.eigenvalues(noise.gram(part.detach().float().cpu().numpy()))
            found.append(_record(matrix, _finite(values, max(matrix.shape), estimator, matrix.name, "the model")))
    return choose.in_largest_stack(found)


def serve() -> None:
    """A worker: a job as JSON on each line of stdin, its figures or its fault on a line of stdout."""
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = asdict(measure(json.loads(line)))
        except AlignError as fault:
            answer = {"fault": [fault.what, fault.remedy]}
        print(json.dumps(answer), flush=True)


def _tensors(folder: Path) -> list[Tensor]:
    """The weights of layers in a folder's files; all tensors of a quantised model are reported at once."""
    index = folder / _INDEX
    if index.is_file():
        record = run_files.read_object(index)
        files = record.get("weight_map") if isinstance(record, dict) else None
        if not isinstance(files, dict):
            raise AlignError(f"'{index}' is damaged: it has no weight_map", _COPY_AGAIN)
        paths = [folder / name for name in sorted(set(files.values()))]
    else:
        paths = [folder / "model.safetensors"]
    found = [tensor for path in paths for tensor in _header(path) if choose.is_weight(tensor.name, tensor.shape)]
    packed = [tensor for tensor in found if tensor.dtype not in _FLOATS or tensor.name.endswith(choose.PACKED)]
    if packed:
        raise _quantised([tensor.name for tensor in packed], f"'{packed[0].path}'", packed[0].dtype)
    return found


def _header(path: Path) -> list[Tensor]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length <= size - 8 else {}
        found = [
            Tensor(
                path, name, entry["dtype"], tuple(entry["shape"]), *(8 + length + at for at in entry["data_offsets"])
            )
            for name, entry in header.items()
            if name != "__metadata__"
        ]
    except OSError as error:
        what = f"'{path}' cannot be read ({error.strerror})"
        raise AlignError(what, "name a folder with model.safetensors, or with all shards of its index") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        found = []
    if not found or any(_torn(tensor, size) for tensor in found):
        raise AlignError(f"'{path}' is damaged, or not a safetensors file", _COPY_AGAIN)
    return found


def _torn(tensor: Tensor, size: int) -> bool:
    width = _FLOATS.get(tensor.dtype)
    return tensor.end > size or (width is not None and tensor.end - tensor.begin != width * prod(tensor.shape))


def _quantised(names: list[str], where: str, dtype: str) -> AlignError:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    what = f"the tensor '{names[0]}'{more} of {where} is packed ({dtype}), so it cannot be ranked by singular values"
    return AlignError(what, "give the original, unquantised model")


def _jobs(tensor: Tensor, estimator: str) -> list[dict[str, Any]]:
    """One job a matrix, as JSON can carry it."""
    parts = tensor.matrices()
    step = (tensor.end - tensor.begin) // len(parts)
    common = {"tensor": tensor.name, "path": str(tensor.path), "dtype": tensor.dtype, "estimator": estimator}
    return [
        {**common, "matrix": asdict(matrix), "begin": tensor.begin + number * step, "bytes": step}
        for number, matrix in enumerate(parts)
    ]


def _work(job: dict[str, Any]) -> float:
    """Operations: the Gram matrix and the reduction to tridiagonal form."""
    short, long = sorted(job["matrix"]["shape"])
    return float(short * short * long + 4 / 3 * short**3)


def measure(job: dict[str, Any]) -> Measure:
    import numpy as np

    shape, name = tuple(job["matrix"]["shape"]), job["matrix"]["name"]
    raw = np.memmap(job["path"], dtype=np.uint8, mode="r", offset=job["begin"], shape=(job["bytes"],))
    kinds = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
    weight = raw.view(kinds[job["dtype"]]).reshape(shape)
    gram = noise.gram(weight, _bfloat16 if job["dtype"] == "BF16" else None)
    del raw, weight  # unmapped before the eigensolver makes its copy
    return _finite(noise.eigenvalues(gram), max(shape), job["estimator"], name, f"'{job['path']}'")


def _bfloat16(block: NDArray[Any]) -> NDArray[Any]:
    """The upper half of a float32, as stored."""
    import numpy as np

    return (block.astype(np.uint32) << 16).view(np.float32)


def _finite(values: NDArray[Any], long_side: int, estimator: str, name: str, where: str) -> Measure:
    import numpy as np

    if not np.isfinite(values).all():
        what = f"the weight '{name}' of {where} contains NaN or infinite values"
        raise AlignError(what, f"{_COPY_AGAIN}, or train from a checkpoint before it diverged")
    return noise.measure(values, long_side, estimator)


def _record(matrix: Matrix, measure: Measure) -> Record:
    return Record(**asdict(matrix), **asdict(measure))


def _measured(jobs: list[dict[str, Any]], workers: int) -> Iterator[tuple[dict[str, Any], Measure]]:
    """The figures of each job as they come; little work is done here, more by processes."""
    workers = min(workers, len(jobs))
    if workers <= 1 or sum(map(_work, jobs)) < IN_PROCESS:
        for job in jobs:
            yield job, measure(job)
        return
    processes = [_start() for _ in range(workers)]
    idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def ask(job: dict[str, Any]) -> tuple[dict[str, Any], Measure]:
        process = idle.get()
        try:
            return job, _answer(process, job)
        finally:
            idle.put(process)

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in as_completed([pool.submit(ask, job) for job in jobs]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
                process.wait()


def _start() -> subprocess.Popen[str]:
    # One thread each; a session of its own, so that Ctrl-C reaches only the parent. It ends with its stdin. Not
    # multiprocessing, which runs the caller's script a second time.
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    search = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.Popen(
        [sys.executable, "-c", "from align.spectrum.scan import serve; serve()"],
        env={**os.environ, **limits, "PYTHONPATH": search},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _answer(process: subprocess.Popen[str], job: dict[str, Any]) -> Measure:
    assert process.stdin is not None and process.stdout is not None
    line = ""
    with suppress(BrokenPipeError):
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    if not line:
        what = f"a process died while it measured '{job['matrix']['name']}', most likely out of memory"
        raise AlignError(what, "scan with fewer workers")
    answer = json.loads(line)
    if "fault" in answer:
        raise AlignError(*answer["fault"])
    return Measure(**answer)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "align" / "spectrum"


def _entry(tensor: Tensor, estimator: str) -> Path:
    """Where a tensor's figures are kept: by the content of its file, its name, the estimator and its version."""
    key = run_files.digest([_content(tensor.path), tensor.name, estimator, noise.VERSION])
    return _cache() / "tensors" / key[:2] / f"{key}.json"


def _content(path: Path) -> str:
    """The hash of a file's bytes, itself kept by size and time of change."""
    stat = path.stat()
    kept = _cache() / "files" / f"{run_files.digest(str(path.resolve()))}.json"
    facts = {"path": str(path.resolve()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    record = _read(kept)
    if isinstance(record, dict) and isinstance(record.get("sha256"), str) and record == {**record, **facts}:
        return str(record["sha256"])
    sha256 = run_files.file_sha256(path)
    _write(kept, {**facts, "sha256": sha256})
    return sha256


def _cached(entry: Path, tensor: Tensor) -> list[Record]:
    """A tensor's records; none if there is no entry or it is not as it was written, and then it goes."""
    kept = _read(entry)
    with suppress(KeyError, TypeError):
        if kept["sha256"] == run_files.digest(kept["measures"]):
            return [_record(m, Measure(**k)) for m, k in zip(tensor.matrices(), kept["measures"], strict=True)]
    with suppress(OSError):
        entry.unlink(missing_ok=True)
    return []


def _keep(entry: Path, records: list[Record]) -> None:
    measures = [{"snr": r.snr, "threshold": r.threshold, "degenerate": r.degenerate} for r in records]
    _write(entry, {"sha256": run_files.digest(measures), "measures": measures})


def _read(path: Path) -> Any:
    with suppress(OSError):
        return run_files.read_json(path)
    return None


def _write(path: Path, value: Any) -> None:
    with suppress(OSError):  # a home that cannot be written makes the next scan slow, not this one wrong
        run_files.write_json(path, value)
