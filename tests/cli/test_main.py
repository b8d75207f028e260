"""`vlm-grpo`: its commands, and what surrounds them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vlm_grpo.cli.main import COMMANDS, main


def test_commands_are_listed_and_near_names_offered(capsys: pytest.CaptureFixture):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert main([]) == 2
    assert main(["evalute"]) == 2
    assert "unknown command 'evalute'; did you mean 'evaluate'" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["tasks", "rewards", "algorithms"])
def test_a_table_may_be_cut_by_its_reader(table: str):
    """Lines enough to fill a pipe, of which one is read."""
    code = "from vlm_grpo.cli import list, main; list.main = lambda words: print('line\\n' * 100_000) or 0; "
    code += f"import sys; sys.exit(main.main(['{table}']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"line\n"
        process.stdout.close()
        assert process.wait() == 0 and process.stderr.read() == b""


def test_the_quickstart_is_a_command(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit, match="0"):
        main(["quickstart", "--help"])
    assert "usage: vlm-grpo quickstart" in capsys.readouterr().out
