"""Faults of what a run writes to and reads from: disks, object storage, parts, weights."""

import contextlib
import hashlib
import shutil
import subprocess
import time
from pathlib import Path

import pyarrow as pa
from scene import Skipped, read_rows, stable
from weak_s3 import WeakS3
from weak_weights import WeakWeights

from toprovar_batch.orchestrator.commands.status import read_status


def disk_full(scene):
    """The output's disk has no room from a random moment on, for some seconds."""
    filler = _small_disk(scene)
    driver = scene.under_way()
    scene.fault()
    _fill(filler)
    time.sleep(scene.rng.uniform(0, 6))
    filler.unlink()
    # A part that is not published yet is kept; a file aside that cannot be written ends the run.
    if scene.finish(driver, 0, 1) != 0:
        scene.complete()
    scene.whole_at = time.monotonic()
    return scene.verdict()


def disk_full_for_good(scene):
    """The output's disk has no room from a random moment on; it gets some before the run is continued."""
    filler = _small_disk(scene)
    driver = scene.under_way()
    scene.fault()
    _fill(filler)
    before = scene.made
    code = scene.finish(driver, 0, 1)  # 0 where all was written before
    scene.expect(
        code == 0 or scene.made - before <= 16,
        f"{scene.made - before} images were made while none could be kept",
    )
    filler.unlink()
    scene.complete()
    return scene.verdict()


def _small_disk(scene):
    """Mount a disk of 2 MiB as the output's parent; give the file that fills it."""
    disk = scene.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "chaos", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        raise Skipped("a small disk cannot be mounted; it takes root")
    scene.closing.callback(subprocess.run, ["umount", "--lazy", str(disk)], check=True)
    scene.output = str(disk / "out")
    return disk / "filler"


def _fill(filler):
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


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
    store = _store(scene)
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


def two_drivers_on_s3(scene):
    """Two drivers of one job on one output in S3, which has no locks: both may do the work."""
    _store(scene)
    first = scene.start()
    time.sleep(scene.rng.uniform(0, 4))
    scene.fault()
    second = scene.start()
    scene.finish(first, 0)
    scene.finish(second, 0)
    scene.whole_at = time.monotonic()
    return scene.verdict()


def _store(scene):
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


def foreign_part(scene):
    """A part of another seed is copied in: it is named, left alone, and made anew once it is deleted."""
    other = scene.folder / "other"
    output, scene.output = scene.output, str(other)
    scene.finish(scene.start(seed=7), 0)
    scene.output = output
    driver = scene.under_way()
    if scene.rng.random() < 0.5:
        scene.strike([driver.process.pid])
        driver.process.wait()
    else:
        scene.finish(driver, 0)
    name = scene.rng.choice(sorted(path.name for path in (other / "data").iterdir()))
    target = Path(scene.output, "data", name)
    target.parent.mkdir(exist_ok=True)
    scene.fault()
    shutil.copy(other / "data" / name, target)
    content = target.read_bytes()
    scene.finish(scene.start(), 1)
    scene.expect(target.read_bytes() == content, "the foreign part was changed")
    scene.expect(list(read_status(scene.output)["damaged"]), "status does not name the foreign part")
    target.unlink()
    scene.complete()
    return scene.verdict()


def damaged_part(scene):
    """A byte of a part is changed, or its end is missing: whoever verifies says so, or reads the same rows."""
    scene.finish(scene.start(), 0)
    wanted = scene.undisturbed(scene.prompts, scene.job_seed)
    path = scene.rng.choice(scene.parts())
    whole = path.read_bytes()
    for _ in range(200):
        if scene.rng.random() < 0.1:
            broken = whole[: scene.rng.randrange(len(whole))]
        else:
            place = scene.rng.randrange(len(whole))
            broken = bytearray(whole)
            broken[place] ^= scene.rng.randrange(1, 256)
        path.write_bytes(broken)
        if not read_status(scene.output, verify=True)["damaged"]:
            scene.expect(
                _reads_as(scene, wanted), f"a damaged part was verified: {len(broken)} of {len(whole)} bytes"
            )
    scene.fault()
    path.unlink()
    scene.complete()
    return scene.verdict()


def _reads_as(scene, wanted):
    try:
        rows = read_rows(scene.output)
    except (OSError, pa.ArrowException):
        return False
    return {row["sample_id"]: stable(row) for row in rows} == wanted
