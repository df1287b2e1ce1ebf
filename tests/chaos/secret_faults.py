"""Secrets in addresses and in the environment: whatever goes wrong, nothing that a run leaves has them."""

import hashlib
import time

import s3fs
from storage_faults import store_of
from weak_weights import WeakWeights

SECRET = "S3cr3tOfChaos"


def secrets(scene):
    """Secrets in the addresses of prompts and weights, and of S3 and the hub in the environment, while much goes wrong."""
    scene.engine = "drawn"  # whatever `--engine` says: the job names weights of its own
    server = WeakWeights(scene.rng.random())
    scene.closing.callback(server.close)
    signed = f"http://user:{SECRET}@127.0.0.1:{server.server_port}/{{}}?X-Amz-Signature={SECRET}&id={SECRET}"
    server.prompts = "\n".join(scene.prompts).encode()
    scene.source = signed.format("prompts.txt")
    scene.model = f"{{preset: tiny, vae: '{signed.format('vae.safetensors')}'}}"
    scene.image = "{}"
    digest = hashlib.sha256(server.content).hexdigest()
    (scene.folder / "weights").write_text(f"{signed.format('w.safetensors')} {digest}", encoding="utf-8")
    store = store_of(scene)
    ray_folder, keys = _folder_of_its_own(scene), ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
    scene.environment |= dict.fromkeys(keys, SECRET) | {"TOPROVAR_CACHE": str(scene.folder / "cache")}
    # Cut-off weights end a run, or an S3 that refuses; then a worker is killed.
    if scene.rng.random() < 0.5:
        scene.fault()
        scene.finish(scene.start(), 1, 2)
    server.cutting = False
    driver = scene.under_way()
    scene.fault()
    store.weaken("refusing")
    time.sleep(scene.rng.uniform(0, 5))
    store.heal()
    if scene.workers():
        scene.strike([scene.rng.choice(scene.workers())])
    if scene.finish(driver, 0, 1) != 0:
        scene.complete()
    scene.whole_at = time.monotonic()
    for command in ("status", "fsck"):
        scene.finish(scene.start(command=command), 0)
    verdict = scene.verdict()
    for place in [*_with_secret(scene, ray_folder), *_with_secret_in_s3()]:
        scene.expect(False, f"a secret is in {place}")
    return verdict


def _folder_of_its_own(scene):
    """Let Ray keep its session, and its logs, in a folder of this try: a short path, for its sockets lie below."""
    folder = scene.folder.parent / f"r{scene.rng.randrange(1 << 32):x}"
    scene.environment["RAY_TMPDIR"] = str(folder)
    return folder


def _with_secret(scene, ray_folder):
    """Files with the secret, but for those in which this try has written it itself."""
    own = {path.name for path in scene.folder.glob("job-*.yaml")} | {"weights"}
    files = (path for folder in (scene.folder, ray_folder) for path in folder.rglob("*"))
    return [
        str(path)
        for path in files
        if path.is_file() and path.name not in own and SECRET.encode() in path.read_bytes()
    ]


def _with_secret_in_s3():
    filesystem = s3fs.S3FileSystem()
    filesystem.invalidate_cache()
    return [path for path in filesystem.find("bucket") if SECRET.encode() in filesystem.cat_file(path)]
