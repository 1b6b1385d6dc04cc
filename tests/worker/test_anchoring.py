import time

from app.evidence.log import append
from worker.sweeper import Sweeper


def test_a_worker_signs_the_log_and_sends_its_checkpoint(make_services, tmp_path):
    kept = tmp_path / "kept"
    services = make_services(anchor_url=kept.as_uri(), checkpoint_seconds=0.01, sweep_seconds=0.01)
    with services.sessions.begin() as session:
        append(session, "test.happened", subject={}, payload={})
    sweeper = Sweeper(services)
    sweeper.start()
    deadline = time.monotonic() + 30
    while not (files := sorted(kept.rglob("*.checkpoint"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    sweeper.stop()
    (path,) = files
    assert path.read_text().startswith(f"{services.settings.log_origin}\n")
