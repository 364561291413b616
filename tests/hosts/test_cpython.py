# SPDX-License-Identifier: Apache-2.0
"""The tests that CPython has for its own processes hold for Process and AsyncProcess too.

They come from the library of the interpreter that runs this. RUN names those that are run, LEFT_OUT
the others, and why they do not apply. A test that is in neither came with a newer Python.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from lib.cpython import LONGEST
from lib.machine import IS_SANITIZED, needs_root, python, require

pytestmark = [
    needs_root,
    pytest.mark.skipif(IS_SANITIZED, reason="the commands would load the sanitizer as well"),
]

TESTS = Path(__file__).resolve().parent.parent
OF_SUBPROCESS, OF_ASYNCIO = "test.test_subprocess", "test.test_asyncio.test_subprocess"
SIZE = 14  # tests of a part, which share one start of the interpreter

IN_A_LOOP = """
cancel_process_wait communicate communicate_ignore_broken_pipe communicate_none_input
create_subprocess_env_exec create_subprocess_env_shell create_subprocess_exec_with_path
devnull_error devnull_input devnull_output devstdin_input empty_input kill kill_issue43884
read_stdout_after_process_exit send_signal shell start_new_session stdin_broken_pipe
stdin_not_inheritable stdin_stdout subprocess_communicate_stdout subprocess_concurrent_wait
subprocess_send_signal_race terminate
"""
RUN: dict[tuple[str, str], str] = {
    (OF_SUBPROCESS, "ProcessTestCase"): """
        bytes_executable call_kwargs call_seq call_timeout check_call_nonzero check_call_zero
        check_output check_output_input_arg check_output_input_none check_output_nonzero
        check_output_stderr check_output_stdin_arg check_output_timeout communicate
        communicate_eintr communicate_epipe communicate_epipe_only_stdin communicate_pipe_buf
        communicate_pipe_fd_leak communicate_returns communicate_stderr communicate_stdin
        communicate_stdout communicate_timeout_large_output cwd cwd_with_absolute_arg
        cwd_with_pathlike cwd_with_relative_arg cwd_with_relative_executable double_close_on_error
        env executable executable_takes_precedence file_not_found_includes_filename
        file_not_found_with_bad_cwd handles_closed_on_exception invalid_cmd invalid_env
        io_buffered_by_default issue8780 leaking_fds_on_error pathlike_executable poll
        stderr_devnull stderr_filedes stderr_fileobj stderr_none stderr_pipe
        stderr_redirect_with_no_stdout_redirect stdin_devnull stdin_filedes stdin_fileobj stdin_none
        stdin_pipe stdout_devnull stdout_filedes stdout_filedes_of_stdout stdout_fileobj stdout_none
        stdout_pipe stdout_stderr_file stdout_stderr_pipe threadsafe_wait wait wait_timeout
        writes_before_communicate
    """,
    (OF_SUBPROCESS, "POSIXProcessTestCase"): """
        args_string call_string close_fd_0 close_fd_1 close_fd_2 close_fds_0_1 close_fds_0_1_2
        close_fds_0_2 close_fds_1_2 close_fds_when_max_fd_is_lowered
        communicate_repeated_call_after_stdout_close exception_bad_args_0 exception_bad_executable
        exception_cwd kill kill_dead pass_fds_inheritable pass_fds_redirected pipe_cloexec
        pipe_cloexec_real_tools remapping_std_fds run_abort send_signal send_signal_dead
        start_new_session stderr_stdin_are_single_inout_fd stdout_stderr_are_single_inout_fd
        stdout_stdin_are_single_inout_fd swap_fds terminate terminate_dead undecodable_env
        wait_when_sigchild_ignored
    """,
    (OF_SUBPROCESS, "RunFuncTestCase"): """
        capture_output capture_stderr capture_stdout check check_output_input_arg
        check_output_stdin_arg check_output_timeout check_zero returncode run_kwargs
        run_with_bytes_path_and_arguments run_with_pathlike_path_and_arguments timeout
    """,
    (OF_SUBPROCESS, "ContextManagerTests"): "communicate_stdin invalid_args pipe returncode",
    (OF_ASYNCIO, "SubprocessMixin/asyncio"): IN_A_LOOP + "pause_reading",
    (OF_ASYNCIO, "SubprocessMixin/uvloop"): IN_A_LOOP,
    ("test.test_asyncio.test_streams", "StreamTests"): "read_all_from_pipe_reader",
}
LEFT_OUT = {
    "text: a Process has bytes": """
        bufsize_equal_one_text_mode check_output_input_none_encoding_errors
        check_output_input_none_text check_output_input_none_universal_newlines communicate_errors
        communicate_timeout create_subprocess_exec_text_mode_fails
        create_subprocess_shell_text_mode_fails universal_newlines_and_text
        universal_newlines_communicate universal_newlines_communicate_encodings
        universal_newlines_communicate_input_none universal_newlines_communicate_stdin
        universal_newlines_communicate_stdin_stdout_stderr
    """,
    "bufsize and pipesize: files are buffered, pipes are as large as the kernel makes them": """
        broken_pipe_cleanup bufsize_equal_one_binary_mode bufsize_is_none invalid_bufsize
        io_unbuffered_works pipesize_default pipesizes select_unbuffered
    """,
    "shell: a caller writes ['sh', '-c', ...]": """
        bytes_program run_with_pathlike_path run_with_shell_timeout_and_capture_output
        shell_sequence shell_string specific_shell
    """,
    "executable in place of a shell, or with a Python that finds its library by argv[0]": """
        bytes_executable_replaces_shell executable_replaces_shell executable_with_cwd
        executable_without_cwd pathlike_executable_replaces_shell
    """,
    "preexec_fn: no Python runs between clone and exec": """
        close_fds_after_preexec preexec preexec_at_exit
        preexec_errpipe_does_not_double_close_pipes preexec_exception preexec_fork_failure
        preexec_gc_module_failure surrogates_error_message
    """,
    "ids, umask, sessions and signals belong to the Sandbox, or are always new": """
        extra_groups extra_groups_empty_list extra_groups_error
        extra_groups_invalid_gid_t_values group group_error process_group_0 restore_signals umask
        user user_error
    """,
    "close_fds=False: only pass_fds are inherited, and a stream that is closed is refused": """
        close_fds pass_fds small_errpipe_write_fd swap_std_fds_with_one_closed
    """,
    "bytes as cwd": "cwd_with_bytes",
    "a Process that is garbage is killed, where a Popen goes on as a zombie": """
        leak_fast_process_del_killed zombie_fast_process_del
    """,
    "the inside of Popen: its mocks, its repr, the waitpid of its pid": """
        _use_vfork class_getitems close_dont_kill_finished close_kill_running
        communicate_BrokenPipeError_stdin_close
        communicate_BrokenPipeError_stdin_close_with_timeout
        communicate_BrokenPipeError_stdin_flush communicate_BrokenPipeError_stdin_write
        failed_child_execute_fd_leak fork_exec fork_exec_sorted_fd_sanity_check popen_error
        popen_error_with_stdin_pipe repr send_signal_race send_signal_race2 stopped
        vfork_used_when_expected
    """,
    "they start nothing, or a subprocess.Popen of their own": """
        CalledProcessError_str_non_zero CalledProcessError_str_signal
        CalledProcessError_str_unknown_signal cancel_make_subprocess_transport_exec
        cancel_post_init check_output_stdin_with_input_arg check_output_stdout_arg
        encoding_warning exception_errpipe_bad_data exception_errpipe_normal list2cmdline
        stderr_with_capture_output_arg stdout_stdout stdout_with_capture_output_arg
        subprocess_protocol_events
    """,
    "the wrong arguments are those of Popen": """
        POSIXProcessTestCase.invalid_args ProcessTestCase.invalid_args
    """,
    "a mock that a transport of uvloop does not take": "SubprocessMixin/uvloop.pause_reading",
    "they count the descriptors that a Popen needs": "no_leaking",
    "the environment of a venv, or Windows": """
        empty_env nonexisting_with_pipes one_environment_variable run_with_an_empty_env
        wait_negative_timeout win32_duplicate_envs win32_invalid_env
    """,
}


def _parts() -> Iterator[tuple[str, str, list[str]]]:
    for (module, case), text in RUN.items():
        names = [f"test_{name}" for name in text.split()]
        for first in range(0, len(names), SIZE):
            yield module, case, names[first : first + SIZE]


def _id(part: tuple[str, str, list[str]]) -> str:
    return f"{part[1]}: {part[2][0]} and {len(part[2]) - 1} others"


@pytest.mark.sample(3)
@pytest.mark.parametrize("part", [pytest.param(part, id=_id(part)) for part in _parts()])
def test_a_test_of_cpython_holds(part: tuple[str, str, list[str]]) -> None:
    module, case, names = part
    if not _is_there(module):  # Debian's is a package of its own, and others have none
        pytest.skip(f"this Python came without {module}")
    require(not case.endswith("uvloop") or find_spec("uvloop"), "there is no uvloop")
    argv = [*python(), "-m", "lib.cpython", module, case, *names]
    # The commands inherit the streams of the program.
    run = subprocess.run(
        argv,
        cwd=TESTS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=LONGEST + 30,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
    )
    assert run.returncode == 0, run.stderr.decode()
    results = json.loads(run.stdout)
    wrong = {name: text for name, text in results.items() if text != "ok"}
    assert not wrong, "\n".join(f"{name}: {text}" for name, text in wrong.items())
    assert results


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its package
        return False


def test_a_test_of_cpython_is_run_or_left_out() -> None:
    run = {name for text in RUN.values() for name in text.split()}
    left_out = [name for text in LEFT_OUT.values() for name in text.split()]
    assert len(left_out) == len(set(left_out))
    assert not run & set(left_out)
