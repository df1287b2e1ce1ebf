"""The faults of processes, prompts and places; each is a function that leaves a whole dataset, and says its verdict."""

import os
import shutil
import signal
import time
from pathlib import Path

from scene import PACE_S, SHARD_SIZE

STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}


def worker_kill(scene):
    """Kill -9 of workers, one to three times."""
    driver = scene.start()
    for _ in range(scene.rng.randrange(1, 4)):
        if scene.made < len(scene.prompts) * 2 // 3 and scene.wait_until_made(
            driver, scene.rng.randrange(1, 10)
        ):
            scene.strike([scene.rng.choice(scene.workers())])
    end(scene, driver)
    return scene.verdict()


def driver_kill(scene):
    """Kill -9 of the driver, one to three times."""
    for _ in range(scene.rng.randrange(1, 4)):
        driver = scene.start()
        if scene.made < len(scene.prompts) // 2:
            scene.wait_until_made(driver, scene.rng.randrange(1, 10))
        else:
            time.sleep(scene.rng.uniform(0, 3))
        scene.strike([driver.process.pid])
        driver.process.wait()
    scene.complete()
    return scene.verdict()


def raylet_kill(scene):
    """Kill -9 of the raylet of the run's own Ray."""
    return _of_own_ray(scene, "raylet/raylet ")


def gcs_kill(scene):
    """Kill -9 of the GCS of the run's own Ray."""
    return _of_own_ray(scene, "gcs_server ")


def _of_own_ray(scene, name):
    driver = scene.under_way()
    scene.strike(scene.pids(name))
    if scene.finish(driver, 0, 1) != 0:
        scene.complete()
    else:
        scene.whole_at = time.monotonic()
    return scene.verdict()


def sigint(scene):
    """Ctrl-C at any moment of a run: before, during or after dispatch."""
    return _signal(scene, signal.SIGINT)


def sigterm(scene):
    """SIGTERM at any moment of a run: before, during or after dispatch."""
    return _signal(scene, signal.SIGTERM)


def _signal(scene, number):
    driver = scene.start()
    if scene.rng.random() < 0.5:
        time.sleep(scene.rng.uniform(0, 6))
    else:
        scene.wait_until_made(driver, scene.rng.randrange(1, len(scene.prompts)))
    scene.strike([driver.process.pid], number)
    # Python itself has no handler in the first moments; a shell shows that end as the same code.
    scene.finish(driver, 0, STOPPED[number], -number)
    scene.complete()
    return scene.verdict()


def sigint_twice(scene):
    """Ctrl-C, and once more while shards are finished: the run ends at once."""
    driver = scene.under_way()
    scene.strike([driver.process.pid], signal.SIGINT)
    time.sleep(scene.rng.uniform(0, 2 * SHARD_SIZE * PACE_S))
    scene.strike([driver.process.pid], signal.SIGINT)
    scene.finish(driver, 0, 130, -signal.SIGINT)
    scene.complete()
    return scene.verdict()


def closed_stderr(scene):
    """Nobody reads what the run says from a random moment on, or it says it to a full disk."""
    if scene.rng.random() < 0.5:
        with Path("/dev/full").open("wb") as full:
            driver = scene.start(stderr=full)
        scene.fault()
    else:
        reader, writer = os.pipe()
        driver = scene.start(stderr=writer)
        os.close(writer)
        scene.wait_until_made(driver, scene.rng.randrange(1, 32))
        scene.fault()
        os.close(reader)
    # A stream that nobody read is the shell's matter; all the work must be done.
    end(scene, driver)
    return scene.verdict()


def other_cores(scene):
    """The driver is killed, and the job goes on with more cores for each worker."""
    driver = scene.under_way()
    scene.strike([driver.process.pid])
    driver.process.wait()
    scene.settings |= {"num_workers": 1, "cpus_per_worker": 2}
    scene.environment["OMP_NUM_THREADS"] = "2"
    scene.complete()
    return scene.verdict()


def worker_stop(scene):
    """SIGSTOP of a worker, which hangs from then on; it wakes after the run."""
    scene.settings["stall_timeout_s"] = 5
    driver = scene.under_way()
    stopped = [scene.rng.choice(scene.workers())]
    scene.strike(stopped, signal.SIGSTOP)
    end(scene, driver)
    scene.strike(set(stopped) & set(scene.processes()), signal.SIGCONT)
    return scene.verdict()


def driver_stop(scene):
    """SIGSTOP of the driver for longer than a worker may be silent: no worker may be lost by it."""
    scene.settings["stall_timeout_s"] = 5
    driver = scene.under_way()
    scene.strike([driver.process.pid], signal.SIGSTOP)
    time.sleep(scene.rng.uniform(1, 15))
    scene.strike([driver.process.pid], signal.SIGCONT)
    end(scene, driver)
    scene.expect("lost" not in driver.said, f"workers were lost: {driver.said[-300:]}")
    return scene.verdict()


def poison_prompt(scene):
    """A prompt that kills its worker, at a random place."""
    return _bad_prompt(scene, "exit")


def exception_prompt(scene):
    """A prompt that raises, at a random place."""
    return _bad_prompt(scene, "raise")


def _bad_prompt(scene, order):
    place = scene.rng.randrange(len(scene.prompts))
    scene.prompts = (*scene.prompts[:place], order, *scene.prompts[place + 1 :])
    scene.fault()
    end(scene, scene.start())
    return scene.verdict(errors={order})


def broken_environment(scene):
    """Every engine raises from a random moment on; it is mended before the run is continued."""
    driver = scene.start()
    scene.wait_until_made(driver, scene.rng.randrange(1, 40))
    scene.fault()
    (scene.folder / "broken").touch()
    scene.finish(driver, 0, 1)  # 0 where all was made before
    (scene.folder / "broken").unlink()
    scene.complete()
    return scene.verdict()


def broken_from_the_start(scene):
    """Every engine raises at every batch: nothing may be published."""
    (scene.folder / "broken").touch()
    driver = scene.start()
    scene.finish(driver, 1)
    scene.expect(not scene.parts(), "a part was published although no image was made")
    scene.fault()
    (scene.folder / "broken").unlink()
    scene.complete()
    return scene.verdict()


def broken_worker(scene):
    """One of two workers raises at every batch."""
    (scene.folder / "broken-one").touch()
    scene.fault()
    end(scene, scene.start())
    return scene.verdict()


def begun_again(scene):
    """The output is deleted under a run, and a job of another seed begins there."""
    driver = scene.under_way()
    scene.fault()
    shutil.rmtree(scene.output, ignore_errors=True)
    shutil.rmtree(scene.output, ignore_errors=True)  # what was written meanwhile
    scene.job_seed = 7
    later = scene.start()
    scene.finish(driver, 1, 2)
    if scene.finish(later, 0, 1, 2) != 0:  # the earlier driver may have written a file there in between
        shutil.rmtree(scene.output, ignore_errors=True)
        scene.complete()
    scene.whole_at = time.monotonic()
    return scene.verdict()


def two_drivers(scene):
    """Two drivers of one job on one output: one is refused, or finds all done."""
    first = scene.start()
    time.sleep(scene.rng.uniform(0, 4))
    scene.fault()
    second = scene.start()
    codes = {scene.finish(first, 0, 2), scene.finish(second, 0, 2)}
    scene.expect(0 in codes, "both drivers were refused")
    scene.whole_at = time.monotonic()
    return scene.verdict()


def end(scene, driver):
    """The run must reach its end by itself."""
    scene.finish(driver, 0)
    scene.whole_at = time.monotonic()
