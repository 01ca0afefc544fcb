"""How commands end: one line and a status, whatever stops them."""

import os
import signal
import sys
import time
import weakref

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
        (ImportError("format='onnx' needs onnx"), 2, "error: format='onnx' needs onnx"),
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


def test_values_in_messages_are_whole_and_methods_no_options(capsys):
    def main():
        raise ValueError("roi=[[0, 0], [1, 1]], expected a mask; no method: expected resize=fit|tile, resize='fit'")

    assert run_until_interrupted(main, ["roi", "resize"]) == 2
    told = "--roi [[0, 0], [1, 1]], expected a mask; no method: expected resize=fit|tile, --resize fit"
    assert capsys.readouterr().err == f"error: {told}\n"


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


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_not_lost_where_python_drops_what_it_raises(number, status, ctrl_c, capsys):
    former, reached = (sys.unraisablehook, signal.getsignal(signal.SIGTERM)), []

    def drop(reference):
        os.kill(os.getpid(), number)
        time.sleep(1)

    def main():
        key = {1}
        reference = weakref.ref(key, drop)
        del key  # calls `drop`, and ignores what is raised there
        reached.append(reference)
        time.sleep(30)
        return 0

    assert run_until_interrupted(main) == status and len(reached) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (sys.unraisablehook, signal.getsignal(signal.SIGTERM)) == former


def test_other_errors_that_python_drops_are_shown(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: seen.append(lost.exc_type))

    def main():
        key = {1}
        reference = weakref.ref(key, lambda _: 1 / 0)
        del key
        return 0 if reference() is None else 1

    assert run_until_interrupted(main) == 0 and seen == [ZeroDivisionError]
