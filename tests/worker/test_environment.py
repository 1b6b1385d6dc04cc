import hashlib
import json
from pathlib import Path

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
