"""Writes a certificate: `python -m lstm_jax.certify --against=torch`.

The exit code is 0 where all comparisons pass, 1 where one fails, 2 where the library is
not installed.
"""

import contextlib
import datetime
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
from absl import flags

from lstm_jax import command_line
from lstm_jax.certify import against_flax, against_keras, against_tf1, against_torch
from lstm_jax.certify.compare import Result, results
from lstm_jax.certify.peer import Peer
from lstm_jax.certify.report import as_json, as_markdown
from lstm_jax.data.files import local_path
from lstm_jax.devices import all_devices
from lstm_jax.errors import UserError
from lstm_jax.reporting import write_file

PEERS: dict[str, Peer] = {
    "torch": against_torch.PEER,
    "keras": against_keras.PEER,
    "flax": against_flax.PEER,
    "tf1": against_tf1.PEER,
}


def main() -> None:
    """Compares, tells each case on stderr, and writes."""
    values = flags.FLAGS
    peer, folder = PEERS[values.against], local_path(values.out)
    peer.versions()  # which refuses what is not installed
    all_devices()  # or a line says that there are none
    found = []
    with _writing(folder):  # tried before what takes minutes
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as tried:
            tried.write(bytes(1 << 20))  # more than a certificate
    # On a GPU, products of float32 are of fewer digits by default.
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        for result in results(peer):
            found.append(result)
            print(_line(result), file=sys.stderr)
    today = datetime.date.today()
    with _writing(folder):
        for suffix, write in (("json", as_json), ("md", as_markdown)):
            path = folder / f"{peer.library}.{suffix}"
            write_file(path, write(peer, found, today))
    failed = sum(not result.passed for result in found)
    print(f"{len(found)} comparisons, {failed} failed: {path}")
    if failed:
        sys.exit(1)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write to {folder} ({error.strerror}): name another folder in --out"
        ) from None


def _line(result: Result) -> str:
    case, error = result.case, result.error
    return (
        f"{'passed' if result.passed else 'FAILED'} {case.dtype} "
        f"{'x'.join(map(str, case.shape))} {case.cell}, {case.mode}: {result.what} "
        f"{error.relative:.1e} {error.array}"
    )


if __name__ == "__main__":
    flags.DEFINE_enum(
        "against", None, list(PEERS), "The library to compare with.", required=True
    )
    flags.DEFINE_string("out", "certificates", "The folder of the certificate.")
    command_line.run(main)
