import hashlib
import json
import subprocess
import sys
from pathlib import Path

import torch

import core
import worker
from worker.environment import code_sha256, describe_environment


def test_the_code_digest_covers_every_source_file_of_core_and_worker():
    root = Path(core.__file__).parents[1]
    files = [*Path(core.__file__).parent.rglob("*.py"), *Path(worker.__file__).parent.rglob("*.py")]
    digests = {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    assert {"core/pipeline.py", "worker/runner.py"} <= digests.keys()
    # RFC 8785 of plain ASCII strings is sorted, compact JSON.
    canonical = json.dumps(digests, sort_keys=True, separators=(",", ":")).encode()
    assert code_sha256() == hashlib.sha256(canonical).hexdigest()


def test_the_environment_names_the_libraries_that_compute():
    described = describe_environment()
    assert {"torch", "numpy", "cvxpy"} <= described.libraries.keys()
    assert described.device == "cpu"


def test_the_environment_counts_the_threads_that_compute_now():
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert describe_environment().threads == threads
    finally:
        torch.set_num_threads(before)
    assert describe_environment().cpu_capability == torch.backends.cpu.get_cpu_capability()


def test_a_process_without_torch_says_that_none_computed_and_does_not_load_it():
    code = (
        "import sys; from worker.environment import describe_environment\n"
        "found = describe_environment()\n"
        "assert 'torch' not in sys.modules\n"
        "print(found.threads, found.cpu_capability)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "unknown"], done.stderr
