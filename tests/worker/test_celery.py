import subprocess
import sys

from app.jobs import QUEUE, TASK


def run(code, settings):
    environment = {name.upper(): str(getattr(settings, name)) for name in settings.model_fields_set}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_main_process_of_a_worker_never_imports_torch(settings):
    code = (
        "import sys, worker.celery; worker.celery.app.loader.import_default_modules()\n"
        "assert 'worker.tasks' in sys.modules\n"
        "print(sorted({'torch', 'cvxpy'} & set(sys.modules)))"
    )
    assert run(code, settings) == "[]\n"


def test_messages_are_mere_doorbells(settings):
    code = (
        "from worker.celery import app; app.loader.import_default_modules(); c = app.conf\n"
        "print(sorted(name for name in app.tasks if not name.startswith('celery.')))\n"
        "print(c.task_default_queue, c.task_acks_late, c.task_ignore_result, c.result_backend)\n"
        "print(c.accept_content, c.worker_pool_start_method, c.worker_disable_prefetch)"
    )
    assert run(code, settings).splitlines() == [
        f"['{TASK}']",
        f"{QUEUE} False True None",
        "['json'] spawn True",
    ]
