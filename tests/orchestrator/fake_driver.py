"""`toprovar-batch submit` with the engine of fake_engine.py, as a process of its own that a test can kill.

Arguments: JOB FOLDER SECONDS_AN_IMAGE
"""

import functools
import sys
from pathlib import Path

import ray

sys.path.insert(0, str(Path(__file__).parent))
import fake_engine

from toprovar_batch.orchestrator.commands.submit import finish, resume_command, submit
from toprovar_batch.worker.errors import ToprovarError

if __name__ == "__main__":
    job, folder, seconds = sys.argv[1:]
    ray.cloudpickle.register_pickle_by_value(fake_engine)
    factory = functools.partial(fake_engine.FakeEngine, folder, float(seconds))
    try:
        finish(submit(job, engine_factory=factory), resume_command(job, None, []))
    except ToprovarError as error:
        sys.exit(error.exit_code)
