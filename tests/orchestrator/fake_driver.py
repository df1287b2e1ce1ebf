"""`toprovar-batch submit` with engines that wait for permits, as a process of its own that a test can kill.

Arguments: JOB, the FOLDER of FakeEngine's notes, a folder of this driver's OWN, and "fake" or "real" for the ENGINE.
"""

import functools
import sys
from pathlib import Path

import ray

sys.path.insert(0, str(Path(__file__).parent))
import fake_engine

from toprovar_batch.orchestrator.commands.submit import finish, resume_command
from toprovar_batch.orchestrator.job.load import load_job
from toprovar_batch.orchestrator.run.production import engine_of
from toprovar_batch.orchestrator.run.submission import submit
from toprovar_batch.worker.errors import ToprovarError

if __name__ == "__main__":
    job, folder, own, engine = sys.argv[1:]
    ray.cloudpickle.register_pickle_by_value(fake_engine)
    if engine == "real":
        make = engine_of(load_job(job), on_gpus=False)
    else:
        make = functools.partial(fake_engine.FakeEngine, folder)
    factory = functools.partial(fake_engine.PermittedEngine, make, own)
    try:
        finish(submit(job, engine_factory=factory), resume_command(job, None, []))
    except ToprovarError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
