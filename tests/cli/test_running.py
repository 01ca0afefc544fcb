"""How commands end: one line and a status, whatever stops them."""

import os
import signal

import pytest

from anomalyclip_hf.cli.running import naming, run_until_interrupted


def stopped_by(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    "error, status, line",
    [
        (KeyboardInterrupt(), 130, "interrupted: what was finished is kept"),
        (ValueError("a\n  b"), 2, "error: a b"),
        (MemoryError(), 2, "error: MemoryError"),
        (AssertionError("Torch not compiled with CUDA enabled"), 2, "error: Torch not compiled with CUDA enabled"),
        (TypeError("batch_size=0, not my.batch_size=0"), 2, "error: --batch-size 0, not my.batch_size=0"),
    ],
)
def test_what_stops_a_command_is_one_line(error, status, line, capsys):
    assert run_until_interrupted(stopped_by(error), ["batch_size"]) == status
    assert capsys.readouterr().err == f"{line}\n"


def test_options_of_other_names_are_spelled(capsys):
    def main():
        with naming(split="validation_split", kind="validation_options.kind", kinds="validation_options.kinds"):
            raise ValueError('split=\'dev\', but there is test; give split="all", kind="folder", kinds=(...)')

    assert run_until_interrupted(main, ["split", "kind"]) == 2
    assert capsys.readouterr().err == (
        "error: --validation-split dev, but there is test; give --validation-split all, "
        """--validation-options '{"kind": "folder"}', --validation-options '{"kinds": [...]}'\n"""
    )


def test_faults_of_ours_pass():
    with pytest.raises(KeyError):
        run_until_interrupted(stopped_by(KeyError("x")))


def test_sigterm_is_raised_where_the_work_is(capsys):
    former, cleaned = signal.getsignal(signal.SIGTERM), []

    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            cleaned.append(True)
        return 0

    assert run_until_interrupted(main) == 143 and cleaned == [True]
    assert capsys.readouterr().err == "terminated: what was finished is kept\n"
    assert signal.getsignal(signal.SIGTERM) == former
    assert run_until_interrupted(lambda: 7) == 7
