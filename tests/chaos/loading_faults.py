"""Faults before the first image: Ray that does not answer, places that cannot load, weights that are none."""

import contextlib
import socket
import time

from faults import end
from safetensors.torch import load_file, save_file

from toprovar_batch.worker.fetch import fetch
from toprovar_batch.worker.presets import PRESETS


def dead_address(scene):
    """Nobody listens at the address of the cluster, or who listens never answers."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        silent = scene.rng.random() < 0.3
        if silent:
            listener.listen()
        scene.environment["RAY_ADDRESS"] = f"127.0.0.1:{listener.getsockname()[1]}"
        scene.fault()
        driver = scene.start()
        scene.finish(driver, 2)
        seconds = time.monotonic() - driver.started
        scene.expect(seconds < (90 if silent else 35), f"a dead address took {seconds:.0f} s")
    del scene.environment["RAY_ADDRESS"]
    scene.complete()
    return scene.verdict()


def loading_kill(scene):
    """Kill -9 of workers while they load, one to four times."""
    (scene.folder / "slow-load").write_text("2", encoding="ascii")
    driver, struck = scene.start(), set()
    for _ in range(scene.rng.randrange(1, 5)):
        if scene.wait_for(driver, lambda: _loading(scene) - struck, "a worker loaded"):
            time.sleep(scene.rng.uniform(0, 1.5))
            victim = scene.rng.choice(sorted(_loading(scene) - struck) or [0])
            if victim:
                struck.add(victim)
                scene.strike([victim])
    if scene.finish(driver, 0, 1) != 0:  # 1 where three in a row were lost and none was left
        scene.expect(len(struck) >= 3, "the run ended although fewer than three workers were lost")
        scene.complete()
    scene.whole_at = time.monotonic()
    return scene.verdict()


def _loading(scene):
    """Processes that have begun to load and still live, whether or not they have loaded."""
    log = scene.folder / "loading.log"
    begun = {int(line) for line in log.read_text(encoding="ascii").split()} if log.exists() else set()
    return begun & set(scene.workers())


def loading_hang(scene):
    """One worker hangs while it loads."""
    scene.settings["load_timeout_s"] = 10
    (scene.folder / "hang-one").touch()
    scene.fault()
    end(scene, scene.start())
    return scene.verdict()


def loading_error(scene):
    """No worker can load: for some seconds, or until the run is continued."""
    order = scene.folder / "unloadable"
    order.touch()
    driver = scene.start()
    scene.fault()
    time.sleep(scene.rng.uniform(0, 12))
    if scene.rng.random() < 0.5:
        order.unlink()
    code = scene.finish(driver, 0, 1)
    if order.exists():
        scene.expect(code == 1 and not scene.parts(), f"exit code {code} although nothing could load")
        order.unlink()
    scene.complete()
    return scene.verdict()


def nan_weights(scene):
    """A number of the VAE's weights is none: nothing is made with it, and its output is free for the job without it."""
    weights = load_file(fetch(PRESETS["tiny"].vae_file))
    tensor = weights[scene.rng.choice(drawn_with(weights))].view(-1)
    tensor[scene.rng.randrange(len(tensor))] = float(scene.rng.choice(["nan", "inf", "-inf"]))
    place = scene.folder / "vae.safetensors"
    save_file(weights, place)
    engine, model, image = scene.engine, scene.model, scene.image
    scene.engine, scene.model, scene.image = "model", f"{{preset: tiny, vae: '{place}'}}", "{}"
    scene.fault()
    driver = scene.start()
    scene.finish(driver, 1, 2)
    scene.expect("finite" in driver.said, f"nothing is said of the number: {driver.said[-300:]}")
    scene.expect(not scene.parts(), "a part was made with weights that are no numbers")
    scene.engine, scene.model, scene.image = engine, model, image
    scene.complete()
    return scene.verdict()


def drawn_with(weights):
    """Names of a VAE's weights that decide pictures; a job reads the others in no way."""
    return sorted(name for name in weights if not name.startswith("encoder."))


def raylet_and_worker_kill(scene):
    """Kill -9 of the raylet of the run's own Ray, and of a worker: nothing can start another one."""
    driver = scene.under_way()
    scene.strike([*scene.pids("raylet/raylet "), scene.rng.choice(scene.workers())])
    if scene.finish(driver, 0, 1) == 0:
        scene.whole_at = time.monotonic()
    else:
        scene.complete()
    return scene.verdict()
