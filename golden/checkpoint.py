"""Files that a training leaves: checkpoints and weights, written whole or not at all.

A file is written beside its target, flushed to the disk, and renamed over it; then the directory
entry is flushed too. So whatever happens, the target is the old file or the new one, and once
`save_checkpoint` has returned, the new one stays. Files are `.npz` archives without time stamps:
equal contents are equal bytes.
"""

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from spec.errors import SpecError

__all__ = [
    "UNREADABLE",
    "Checkpoint",
    "Parameters",
    "load_checkpoint",
    "load_weights",
    "named",
    "paired",
    "save_checkpoint",
    "save_weights",
    "weights_sha256",
    "write_atomically",
]

Parameters = list[tuple[np.ndarray, np.ndarray]]
"""A network's parameters in layer order: `(weight (n_out, n_in), bias (n_out,))`; int16 codes or
floats.
"""

FORMAT = "entrain checkpoint 1"
EPOCH_OF_ZIP = (1980, 1, 1, 0, 0, 0)
META, STATE, SUMS = "meta", "state/", "sums/"
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy and zipfile raise for files that are cut, altered, encrypted or something else."""


@dataclass(frozen=True)
class Checkpoint:
    """A training at rest.

    `identity` names everything that must stay the same for a resumed run to reach bit-equal weights
    (network, rule, arithmetic, seed, data); `progress` is what `golden.train` counts (epoch,
    sample, history: JSON values); `state` is the backend's `state_dict()`; `names` says for values
    of `identity` that are hashes, what of: for messages; `sums` are weights and biases added up
    after the epochs whose mean is wanted, by the names of `named`, int64 or float64: none before
    the first of these epochs has ended.
    """

    identity: dict[str, str]
    progress: dict
    state: dict[str, np.ndarray]
    names: dict[str, str] = field(default_factory=dict)
    sums: dict[str, np.ndarray] = field(default_factory=dict)


def write_atomically(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as `.npz` to exactly `path` (no suffix is added), whole or not at all.

    Raises OSError when the disk refuses; what stood at `path` is then untouched.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for name, array in arrays.items():
                    entry = zipfile.ZipInfo(f"{name}.npy", EPOCH_OF_ZIP)
                    with archive.open(entry, "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; when this returns, it is on the disk."""
    meta = {
        "format": FORMAT,
        "identity": dict(checkpoint.identity),
        "progress": checkpoint.progress,
        "names": checkpoint.names,
    }
    arrays = {META: np.array(json.dumps(meta))}
    arrays |= {STATE + name: value for name, value in checkpoint.state.items()}
    arrays |= {SUMS + name: value for name, value in checkpoint.sums.items()}
    write_atomically(path, arrays)


def load_checkpoint(
    path: Path, identity: Mapping[str, str] | None = None, names: Mapping[str, str] | None = None
) -> Checkpoint:
    """Reads a checkpoint. Raises SpecError when it is not one, or when it belongs to another run
    than `identity`; `names` are those of this run, for that message.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            meta = json.loads(str(archive[META][()]))
            if meta["format"] != FORMAT:
                raise ValueError(f"format {meta['format']!r}")
            state, sums = (
                {name.removeprefix(part): archive[name] for name in archive.files if name.startswith(part)}
                for part in (STATE, SUMS)
            )
            # Names and sums came later than the format.
            called = dict(meta.get("names", {}))
            found = Checkpoint(dict(meta["identity"]), dict(meta["progress"]), state, called, sums)
    except UNREADABLE as error:
        raise SpecError(f"{path}: must be a checkpoint of entrain ({_reason(error)})") from None
    if identity is not None:
        for key in {**identity, **found.identity}:
            was, now = found.identity.get(key, "nothing"), identity.get(key, "nothing")
            if was != now:
                was, now = _called(was, found.names.get(key)), _called(now, (names or {}).get(key))
                raise SpecError(
                    f"{path}: checkpoint has {key} {was}, this run has {now}; "
                    f"continue with the same {key}, or train into another folder (--out)"
                )
    return found


def named(parameters: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """A network's arrays by name: `layer0_weight`, `layer0_bias`, `layer1_weight`, … in layer order."""
    arrays = {}
    for index, (weight, bias) in enumerate(parameters):
        arrays[f"layer{index}_weight"], arrays[f"layer{index}_bias"] = weight, bias
    return arrays


def paired(arrays: Mapping[str, np.ndarray]) -> Parameters:
    """The parameters that `named` named; KeyError for a name that is missing."""
    return [(arrays[f"layer{i}_weight"], arrays[f"layer{i}_bias"]) for i in range(len(arrays) // 2)]


def save_weights(path: Path, parameters: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes weights as `.npz`: `layer0_weight`, `layer0_bias`, `layer1_weight`, … in layer order."""
    write_atomically(path, named(parameters))


def load_weights(path: Path, shapes: Sequence[tuple[int, int]] | None = None) -> Parameters:
    """Reads weights saved by `save_weights`; `shapes` are the `(n_in, n_out)` that they must have."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except UNREADABLE as error:
        raise SpecError(f"{path}: must be weights as .npz ({_reason(error)})") from None
    layers = len(arrays) // 2
    expected = {f"layer{i}_{part}" for i in range(layers) for part in ("weight", "bias")}
    if not arrays or set(arrays) != expected:
        raise SpecError(
            f"{path}: keys must be layer0_weight, layer0_bias, layer1_weight, …, "
            f"got {', '.join(sorted(arrays)) or 'none'}"
        )
    found = paired(arrays)
    if shapes is not None:
        if len(shapes) != layers:
            raise SpecError(f"{path}: must hold {len(shapes)} layers, got {layers}")
        for i, ((weight, bias), (n_in, n_out)) in enumerate(zip(found, shapes, strict=True)):
            if weight.shape != (n_out, n_in):
                raise SpecError(
                    f"{path}: layer{i}_weight: shape must be {(n_out, n_in)}, got {weight.shape}"
                )
            if bias.shape != (n_out,):
                raise SpecError(
                    f"{path}: layer{i}_bias: shape must be {(n_out,)}, got {bias.shape}"
                )
    return found


def weights_sha256(parameters: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """SHA-256 over the parameters alone, so that backends with equal weights give equal hashes.

    The bytes hashed are, in layer order, the weight `(n_out, n_in)` in C order, then the bias
    `(n_out,)`; integer codes as little-endian int16, floats little-endian in their own width. No
    names, shapes or padding. Raises ValueError for a code outside of int16: it could not have come
    from the machine.
    """
    digest = hashlib.sha256()
    for layer in parameters:
        for array in layer:
            array = np.asarray(array)
            if array.dtype.kind in "iu":
                codes = array.astype("<i2")
                if not np.array_equal(codes, array):
                    raise ValueError("a parameter code is outside of int16")
                array = codes
            elif array.dtype.kind == "f":
                array = array.astype(array.dtype.newbyteorder("<"))
            else:
                raise ValueError(f"parameters must be integers or floats, got {array.dtype}")
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _called(value: str, name: str | None) -> str:
    """A value of an identity for a message: a hash, whose name is known, behind its name."""
    return f"{name} (SHA-256 {value[:12]}...)" if name and value != "nothing" else value


def _reason(error: BaseException) -> str:
    """An exception as a part of one line."""
    text = " ".join(str(error).split())
    if "pickle" in text:
        return "it is no .npz archive of plain arrays"  # not NumPy's advice to load it all the same
    return text if isinstance(error, OSError) and text else f"{type(error).__name__}: {text}"


def _umask() -> int:
    """The process's file mode mask; reading it takes setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
