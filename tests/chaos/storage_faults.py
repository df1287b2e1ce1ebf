"""Faults of what a run writes to and reads from: disks, object storage, weights."""

import contextlib
import hashlib
import socket
import subprocess
import time
from pathlib import Path

from faults import end
from scene import Skipped
from weak_s3 import WeakS3
from weak_weights import WeakWeights


def disk_full(scene):
    """The output's disk has no room from a random moment on, for some seconds."""
    filler = small_disk(scene)
    driver = scene.under_way()
    scene.fault()
    fill(filler)
    time.sleep(scene.rng.uniform(0, 6))
    filler.unlink()
    # A part that is not published yet is kept; a file aside that cannot be written ends the run.
    if scene.finish(driver, 0, 1) != 0:
        scene.complete()
    scene.whole_at = time.monotonic()
    return scene.verdict()


def disk_full_for_good(scene):
    """The output's disk has no room from a random moment on; it gets some before the run is continued."""
    filler = small_disk(scene)
    driver = scene.under_way()
    scene.fault()
    fill(filler)
    before = scene.made
    code = scene.finish(driver, 0, 1)  # 0 where all was written before
    scene.expect(
        code == 0 or scene.made - before <= 16,
        f"{scene.made - before} images were made while none could be kept",
    )
    filler.unlink()
    scene.complete()
    return scene.verdict()


# Room for the dataset and more: 48 images of the model take 7 MB.
DISK_MEGABYTES = {"drawn": 2, "model": 32}


def small_disk(scene, megabytes=None):
    """Mount a disk of some MiB as the output's parent; give the file that fills it."""
    megabytes = megabytes or DISK_MEGABYTES[scene.engine]
    disk = scene.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "chaos", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        raise Skipped("a small disk cannot be mounted; it takes root")
    scene.closing.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=True)
    scene.output = str(disk / "out")
    return disk / "filler"


def fill(filler):
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def read_only_disk(scene):
    """The output's disk is read-only from a random moment on, for some seconds or until the run is continued."""
    small_disk(scene)
    driver = scene.under_way()
    scene.fault()
    while not _remounted(scene, "ro"):  # refused while a file is open for writing
        time.sleep(0.01)
        if not driver.running:
            break
    before = scene.made
    for_good = scene.rng.random() < 0.5
    if not for_good:
        time.sleep(scene.rng.uniform(0, 6))
        _remounted(scene, "rw")
    code = scene.finish(driver, 0, 1)
    if for_good:
        scene.expect(
            code == 0 or scene.made - before <= 16,
            f"{scene.made - before} images were made while none could be kept",
        )
        _remounted(scene, "rw")
    scene.complete()
    return scene.verdict()


def _remounted(scene, mode):
    disk = Path(scene.output).parent
    command = ["mount", "-o", f"remount,{mode}", str(disk)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def s3_failing(scene):
    """S3 answers with 503 for some seconds."""
    return _weak_s3(scene, "failing")


def s3_slow(scene):
    """S3 takes two seconds for each answer, for some seconds."""
    return _weak_s3(scene, "slow")


def s3_refusing(scene):
    """S3 answers with 403 for some seconds."""
    return _weak_s3(scene, "refusing")


def s3_dead(scene):
    """Nothing listens at the address of S3 for some seconds."""
    return _weak_s3(scene, "dead")


def _weak_s3(scene, weakness):
    store = store_of(scene)
    driver = scene.start()
    if scene.wait_until_made(driver, scene.rng.randrange(1, 32)):
        scene.fault()
        store.weaken(weakness)
        time.sleep(scene.rng.uniform(0, 20))
        store.heal()
    if scene.finish(driver, 0, 1, 2) != 0:
        scene.complete()
    scene.whole_at = time.monotonic()
    return scene.verdict()


def slow_upload(scene):
    """S3 takes longer for each answer than a worker may be silent: no worker may be lost by it."""
    scene.settings["stall_timeout_s"] = 5
    store = store_of(scene)
    store.slow_s = 8.0
    driver = scene.start()
    if scene.wait_until_made(driver, scene.rng.randrange(1, 32)):
        scene.fault()
        store.weaken("slow")
        time.sleep(scene.rng.uniform(8, 25))
        store.heal()
    end(scene, driver)
    scene.expect("lost" not in driver.said, f"workers were lost: {driver.said[-300:]}")
    return scene.verdict()


def two_jobs_on_s3(scene):
    """Two jobs begin on one empty prefix in S3, at least two seconds apart: one is refused."""
    store_of(scene)
    first = scene.start()
    time.sleep(scene.rng.uniform(2, 6))
    scene.fault()
    second = scene.start(seed=7)
    codes = [scene.finish(first, 0, 1, 2), scene.finish(second, 0, 1, 2)]
    scene.expect(0 in codes, f"neither job came to its end: {codes}")
    scene.expect(codes != [0, 0], "both jobs took the prefix")
    scene.job_seed = 0 if codes[0] == 0 else 7
    scene.whole_at = time.monotonic()
    return scene.verdict()


def no_output(scene):
    """The output is a place where none can be: it is said in a sentence, and no image is made."""
    output = scene.output
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{unheard.getsockname()[1]}"
        for place in (f"http://{dead}/out", "hf://datasets/nobody/nothing", "s3://bucket/out", "/proc/out"):
            scene.output = place
            scene.environment |= {
                "AWS_ENDPOINT_URL": f"http://{dead}",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "HF_ENDPOINT": f"http://{dead}",
            }
            scene.fault()
            driver = scene.start(command=scene.rng.choice(["submit", "validate"]))
            scene.finish(driver, 2)
    scene.expect(scene.made == 0, "images were made for an output that cannot be")
    scene.output = output
    scene.complete()
    return scene.verdict()


def two_drivers_on_s3(scene):
    """Two drivers of one job on one output in S3, which has no locks: both may do the work."""
    store_of(scene)
    first = scene.start()
    time.sleep(scene.rng.uniform(0, 4))
    scene.fault()
    second = scene.start()
    scene.finish(first, 0)
    scene.finish(second, 0)
    scene.whole_at = time.monotonic()
    return scene.verdict()


def store_of(scene):
    store = WeakS3()
    scene.closing.callback(store.close)
    scene.environment |= store.environment
    scene.closing.enter_context(store.in_this_process())
    scene.output = "s3://bucket/out"
    return store


def truncated_weights(scene):
    """Transfers of weights over HTTP are cut off at random places; the server is mended before the run is continued."""
    server = WeakWeights(scene.rng.random())
    scene.closing.callback(server.close)
    scene.environment["TOPROVAR_CACHE"] = str(scene.folder / "cache")
    digest = hashlib.sha256(server.content).hexdigest()
    (scene.folder / "weights").write_text(f"{server.url} {digest}", encoding="utf-8")
    scene.fault()
    scene.finish(scene.start(), 1, 2)
    scene.expect(scene.made == 0, "images were made without whole weights")
    server.cutting = False
    scene.complete()
    scene.expect(not (scene.folder / "wrong-weights").exists(), "truncated weights were taken for whole")
    return scene.verdict()
