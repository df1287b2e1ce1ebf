"""Faults of a dataset that is there: parts, records, readers."""

import shutil
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from scene import read_rows, stable
from storage_faults import fill, small_disk

from toprovar_batch.orchestrator.commands.status import read_status
from toprovar_batch.orchestrator.output.reading import DATA


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
    wanted = scene.undisturbed(scene.prompts, scene.job_seed, scene.engine)
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


def damaged_record(scene):
    """The driver is killed; the record or the plan is damaged or deleted, or all parts are."""
    driver = scene.under_way()
    scene.strike([driver.process.pid])
    driver.process.wait()
    job = Path(scene.output, "_job")
    names = [name for name in ("job.json", "samples.parquet") if (job / name).exists()]
    for name in scene.rng.sample(names, scene.rng.randrange(1, len(names) + 1)):
        path = job / name
        if scene.rng.random() < 0.3:
            path.unlink()
        else:
            whole = path.read_bytes()
            path.write_bytes(whole[: scene.rng.randrange(len(whole))])
    _fsck(scene, 0, 1, 2)
    scene.complete()
    return scene.verdict()


def fsck_repair(scene):
    """Parts are cut off, changed, renamed, and strange files lie beside them: `fsck --repair`, then the job goes on."""
    scene.finish(scene.start(), 0)
    scene.fault()
    parts = scene.rng.sample(scene.parts(), 4)
    whole = [path.read_bytes() for path in parts]
    parts[0].write_bytes(whole[0][: scene.rng.randrange(len(whole[0]))])
    parts[1].write_bytes(whole[2])
    parts[2].unlink()
    changed = bytearray(whole[3])
    changed[scene.rng.randrange(len(changed) - 8)] ^= 255
    parts[3].write_bytes(changed)
    shutil.copy(parts[3], parts[3].with_name("copy.parquet"))
    scratch = Path(scene.output, "_job/tmp")
    scratch.mkdir(exist_ok=True)
    (scratch / "left.tmp").write_bytes(b"left")
    _fsck(scene, 1)
    _fsck(scene, 0, 1, options=("--repair",))
    _fsck(scene, 0)
    scene.complete()
    return scene.verdict()


def _fsck(scene, *codes, options=()):
    scene.finish(scene.start(*options, command="fsck"), *codes)


def corrupt_kept_rows(scene):
    """A byte is changed in a part with an error row: `--retry-errors` takes over no row that is not as it was."""
    place = scene.rng.randrange(len(scene.prompts))
    scene.prompts = (*scene.prompts[:place], "raise", *scene.prompts[place + 1 :])
    scene.finish(scene.start(), 0)
    part = next(path for path in scene.parts() if _has_error(path))
    whole = part.read_bytes()
    scene.obedient = False
    scene.fault()
    changed = bytearray(whole)
    changed[scene.rng.randrange(4, len(changed) - 8)] ^= scene.rng.randrange(1, 256)
    part.write_bytes(changed)
    code = scene.finish(scene.start("--retry-errors"), 0, 1)  # 0 where the byte means nothing
    if code != 0:
        scene.expect(part.read_bytes() == changed, "the damaged part was changed")
        part.unlink()
    scene.complete()
    return scene.verdict()


def retry_errors_kill(scene):
    """Kill -9 of a worker or the driver while error rows are made again."""
    places = scene.rng.sample(range(len(scene.prompts)), 6)
    prompts = [f"raise {number}" if number in places else text for number, text in enumerate(scene.prompts)]
    scene.prompts = tuple(prompts)
    scene.finish(scene.start(), 0)
    scene.obedient = False
    driver = scene.start("--retry-errors")
    scene.wait_until_made(driver, scene.rng.randrange(1, 3))  # of six
    if scene.rng.random() < 0.5:
        scene.strike([driver.process.pid])
        driver.process.wait()
    else:
        scene.strike(scene.workers())
        scene.finish(driver, 0, 1)
    scene.finish(scene.start("--retry-errors"), 0)
    scene.whole_at = time.monotonic()
    return scene.verdict()


def read_meanwhile(scene):
    """A dataset is read with `datasets` as its card says, again and again while it is made; a killed driver between."""
    import datasets

    wanted = scene.undisturbed(scene.prompts, scene.job_seed, scene.engine)
    cache, driver = str(scene.folder / "cache"), scene.under_way()

    def read():
        files = f"{scene.output}/{DATA}"
        if scene.parts():
            rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
            rows = rows.cast_column("image", datasets.Image(decode=False)).to_list()
            scene.expect(
                all(_same(row, wanted[row["sample_id"]]) for row in rows), "a reader saw another row"
            )
            return len(rows)
        return 0

    datasets.disable_progress_bars()
    read()
    scene.strike([driver.process.pid])
    driver.process.wait()
    read()
    driver = scene.start()
    while driver.running and time.monotonic() - driver.started < 100:
        read()
        time.sleep(0.5)
    scene.finish(driver, 0)
    scene.whole_at = time.monotonic()
    found = read()
    scene.expect(found == len(scene.prompts), f"a reader sees {found} rows of the whole dataset")
    return scene.verdict()


def _same(row, wanted):
    return row["image"]["bytes"] == wanted["image"]["bytes"] and row["prompt"] == wanted["prompt"]


def sheet_on_full_disk(scene):
    """A sheet is drawn again over an earlier one when the disk is full, or by a process that is killed."""
    filler = small_disk(scene, megabytes=32)
    scene.finish(scene.start(), 0)
    sheet = Path(scene.output).parent / "sheet.png"
    _sheet(scene, sheet, 0)
    before = sheet.read_bytes()
    scene.fault()
    if scene.rng.random() < 0.5:
        fill(filler)
        _sheet(scene, sheet, 1, 2)
        filler.unlink()
        scene.expect(sheet.read_bytes() == before, "the earlier sheet was changed")
    else:
        driver = scene.start("--file", str(sheet), command="sheet")
        time.sleep(scene.rng.uniform(0, 3))
        scene.strike([driver.process.pid])
        driver.process.wait()
        scene.expect(sheet.read_bytes() == before, "the earlier sheet was changed")
    _sheet(scene, sheet, 0)
    scene.whole_at = time.monotonic()
    left = {path.name for path in sheet.parent.iterdir()} - {"out", sheet.name}
    scene.expect(not left, f"files are left beside the sheet: {left}")
    return scene.verdict()


def _sheet(scene, path, *codes):
    scene.finish(scene.start("--file", str(path), command="sheet"), *codes)


def _has_error(path):
    return "error" in pq.read_table(path, columns=["status"])["status"].to_pylist()
