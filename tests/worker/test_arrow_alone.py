"""Processes of our own do not import pandas, which Arrow does by itself."""

import subprocess
import sys

import pytest

pytest.importorskip("pandas")

ASKED_FOR = """
import sys
from toprovar_batch.worker.arrow_alone import leave_pandas_out

leave_pandas_out()
import pyarrow as pa

assert pa.array(["a"]).to_pylist() == ["a"]
assert "pandas" not in sys.modules
assert pa.table({"a": [1, 2]}).to_pandas()["a"].sum() == 3
import pandas as pd

assert pa.array(pd.Series([1, None])).to_pylist() == [1.0, None]
assert not any(type(finder).__name__ == "_NoPandas" for finder in sys.meta_path)
"""

A_WORKER = """
import sys
from toprovar_batch.worker.actor import GenerationWorker

class Engine:
    def fetch(self, count): pass
    def setup(self): pass
    def begin(self, batch): pass
    def describe(self): return {}
    def usage(self): return {}

list(GenerationWorker(Engine).load())
import pyarrow as pa

pa.schema({"a": pa.string()}).empty_table()
assert "pandas" not in sys.modules
"""

THE_DRIVER = """
import sys
from click.testing import CliRunner
from toprovar_batch.orchestrator.cli import main

done = CliRunner().invoke(main, ["submit", "no-such-job.yaml"])
assert done.exit_code == 2, done.output
assert "pyarrow" in sys.modules and "pandas" not in sys.modules
"""


@pytest.mark.parametrize("script", [ASKED_FOR, A_WORKER, THE_DRIVER], ids=["asked for", "worker", "driver"])
def test_pandas_comes_only_to_those_who_ask_for_it(script):
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
