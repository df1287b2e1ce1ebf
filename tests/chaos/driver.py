"""`toprovar-batch` whose engines obey a folder of orders: FOLDER drawn|model PACE_S obey|ignore ARGUMENTS."""

import functools
import sys
from pathlib import Path

from toprovar_batch.orchestrator import cli


def main():
    folder, engine, pace_s, orders, *arguments = sys.argv[1:]
    original = cli.main.get_command

    def get_command(context, name):
        """The command, imported; from then on `submit` makes engines that obey."""
        command = original(context, name)
        production = sys.modules.get("toprovar_batch.orchestrator.run.production")
        if production is not None and not hasattr(production, "engines_obey"):
            obey(production)
        return command

    def obey(production):
        import ray

        sys.path.insert(0, str(Path(__file__).parent))
        import engine as engines

        ray.cloudpickle.register_pickle_by_value(engines)
        model_factory = production.engine_of
        task = production.ShardTask

        def factory(job, *, on_gpus):
            make = engines.DrawnEngine if engine == "drawn" else model_factory(job, on_gpus=on_gpus)
            return functools.partial(
                engines.OrderedEngine, make, folder, float(pace_s), obedient=orders == "obey"
            )

        production.engine_of = factory
        # The two minutes in which a refused part is tried again, as some seconds.
        production.ShardTask = functools.partial(task, publish_delays_s=(1, 2, 4, 8))
        production.engines_obey = True

    cli.main.get_command = get_command
    cli.main(arguments, prog_name="toprovar-batch")


if __name__ == "__main__":
    main()
