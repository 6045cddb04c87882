"""The C++ library: compiled when it is not there, kept, and a plain reason where it cannot be had."""

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

from kernels import choose_backend
from kernels.cpu import library as cpu_library

ROOT = Path(__file__).parent.parent


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A tiny source, an empty cache folder, and a compiler that notes its runs."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler")
    return Workshop(tmp_path, compiler, monkeypatch)


class Workshop:
    def __init__(self, folder, compiler, monkeypatch):
        self.source, self.cache, self._notes = folder / "answer.cpp", folder / "cache", folder / "notes"
        self.write_source(42)
        self._notes.touch()
        self.script = folder / "compiler"
        self.script.write_text(f'#!/bin/sh\n[ "$1" = --version ] || echo "$@" >> {self._notes}\nexec {compiler} "$@"\n')
        self.script.chmod(0o755)
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(cpu_library, "_SOURCES", [self.source])
        monkeypatch.setattr(cpu_library, "_HEADERS", [])
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.cache))
        monkeypatch.setenv("CXX", str(self.script))
        self.start_anew()

    def write_source(self, answer):
        self.source.write_text(f'extern "C" int answer() {{ return {answer}; }}\n')

    def start_anew(self):
        """Forget what this process found out, as a new one would."""
        self._monkeypatch.setattr(cpu_library, "_attempt", cache(cpu_library._attempt.__wrapped__))

    @property
    def num_compilations(self):
        return len(self._notes.read_text().splitlines())

    @property
    def kept(self):
        return sorted(path.name for path in (self.cache / "hstuflow").iterdir())


def test_it_is_compiled_once_and_kept_for_the_next_process(workshop):
    for _ in range(2):
        workshop.start_anew()
        assert cpu_library.obstacle() == ""
        assert cpu_library.load().answer() == 42
    assert workshop.num_compilations == 1
    assert len(workshop.kept) == 1


def test_a_changed_source_is_compiled_anew_under_another_name(workshop):
    cpu_library.load()
    workshop.write_source(43)
    workshop.start_anew()
    assert cpu_library.load().answer() == 43
    assert len(workshop.kept) == 2


def test_other_instructions_and_another_compiler_are_compiled_under_names_of_their_own(workshop, monkeypatch):
    cpu_library.load()
    monkeypatch.setattr(cpu_library, "capability", lambda: "DEFAULT")
    workshop.start_anew()
    cpu_library.load()
    monkeypatch.setenv("CXX", f"{workshop.script} -DOTHER")
    workshop.start_anew()
    cpu_library.load()
    assert len(workshop.kept) == 3


def test_two_that_compile_at_once_do_not_disturb_one_another(workshop, monkeypatch):
    both_are_compiling = threading.Barrier(2)
    run = subprocess.run

    def run_together(command, **options):
        done = run(command, **options)
        if "--version" not in command:
            both_are_compiling.wait(60)
        return done

    monkeypatch.setattr(subprocess, "run", run_together)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: cpu_library._built(), range(2))
    assert first == second
    assert workshop.num_compilations == 2
    assert workshop.kept == [first.name]
    workshop.start_anew()
    assert cpu_library.load().answer() == 42


def refusal():
    """Return why there is no library; everything that asks is told the same."""
    reason = cpu_library.obstacle()
    assert reason
    with pytest.raises(RuntimeError) as error:
        cpu_library.load()
    assert str(error.value) == reason
    name, why = choose_backend("cpu")
    assert name == "torch"
    assert why.startswith(reason)
    with pytest.raises(ValueError, match="'cpu' does not run here"):
        choose_backend("cpu", "cpu")
    return reason


def test_without_a_compiler_plain_torch_runs_and_the_reason_says_what_to_install(workshop, monkeypatch):
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    assert refusal() == "no C++ compiler found (install g++, or name one in CXX)"


def test_a_compiler_that_does_not_exist_is_named(workshop, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler" in refusal()


def test_a_compiler_that_fails_is_quoted(workshop):
    workshop.source.write_text("this is no C++\n")
    reason = refusal()
    assert "error" in reason
    assert str(workshop.source) in reason
    assert workshop.kept == []


def test_a_cache_folder_that_cannot_be_written_is_named(workshop):
    workshop.cache.write_text("a file")
    assert str(workshop.cache) in refusal()
    assert "XDG_CACHE_HOME" in refusal()


def test_a_user_without_a_home_is_told_what_to_set(workshop, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home directory")))
    assert refusal() == "no place to keep the library: no home directory (name one in XDG_CACHE_HOME)"


def test_a_folder_that_all_may_write_to_is_not_loaded_from(workshop):
    cpu_library.load()
    (workshop.cache / "hstuflow").chmod(0o777)
    workshop.start_anew()
    assert f"other users can write to {workshop.cache / 'hstuflow'}" in refusal()


def test_a_folder_of_another_user_is_not_loaded_from(workshop, monkeypatch):
    cpu_library.load()
    user = os.getuid()
    if user == 0:
        os.chown(workshop.cache / "hstuflow", 12_345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: user + 1)
    workshop.start_anew()
    assert "other users can write to" in refusal()


def test_a_command_that_cannot_be_split_is_named(workshop, monkeypatch):
    monkeypatch.setenv("CXX", "'g++")
    assert "'g++" in refusal()


def test_a_library_that_does_not_load_is_a_reason_too(workshop):
    kept = cpu_library._built()
    kept.write_bytes(b"not a library")
    assert str(kept) in refusal()


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_operators_are_right_with_narrower_vectors(capability):
    """Torch is told of fewer instructions than the processor has; whoever has none of these runs less, not wrong."""
    skip_reason = cpu_library.obstacle()
    if skip_reason:
        pytest.skip(skip_reason)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_attention.py", "-k", "any_width"],
        cwd=ROOT,
        env=os.environ | {"ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout
