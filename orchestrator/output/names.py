"""Names within an output folder, each as its steps from the folder."""

JOB_FOLDER = "_job"
JOB_FILE = (JOB_FOLDER, "job.json")
LOCK_FILE = (JOB_FOLDER, "driver.lock")
RUNS_FOLDER = (JOB_FOLDER, "runs")
RUN_TIME = "%Y%m%dT%H%M%SZ"  # of a run's begin in UTC, first in the name of its record
SAMPLES_FILE = (JOB_FOLDER, "samples.parquet")
