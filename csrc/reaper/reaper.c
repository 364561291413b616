/* SPDX-License-Identifier: Apache-2.0
 *
 * The reaper: pid 1 of an isolated run, a static program without libc. It starts the command,
 * reaps what the command leaves behind, reports the command's true status, and exits. Its exit is
 * the end of the namespace: the kernel kills what is still in it.
 *
 * It has
 * - as descriptor 3 a socket to the caller. Every message from there begins with a struct
 *   sbx_order: the first says what is done for each run (a struct sbx_place and all that it points
 *   to), the next is a command with its strings, later ones are signals. The reaper answers with
 *   one struct sbx_record for each command;
 * - as descriptor 4 the lifeline: a pidfd of the caller, readable when that process is dead;
 * - from 5 on the descriptors that it passes on to the command;
 * - and every signal blocked.
 *
 * Pid 1 gets no signal that it does not handle, so no process inside can stop or kill it. It is not
 * dumpable, so nothing inside can trace it. It keeps all capabilities of the caller, so a command
 * with fewer can neither renice nor reschedule it. No command can reach the socket.
 *
 * Each run has a number, and every message about the run has it. The reaper obeys no message for
 * another run: it ignores a signal, and breaks off at an order.
 *
 * A resident is told by its first message that it stays: it asks for one command after the other
 * (SBX_READY_MAGIC). Each command runs in a pid namespace and a mount namespace made for it. The
 * pid namespace is below the resident's, the mount namespace a copy of the resident's: so the
 * command cannot name the resident. It shares the other namespaces with later commands, so the
 * resident looks after each run at what the command could change there. If anything has changed,
 * the resident exits, and all of the slot with it.
 *
 *     resident        pid namespace, mount namespace (the template), network, ipc, uts, cgroup
 *       reaper        pid and mount namespace of the run; it exits with the command
 *         command     the steps of child/steps.c that belong to a run, then exec
 */
#define _GNU_SOURCE
#include "reaper.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n"
        "xor %ebp, %ebp\nmov %rsp, %rdi\nand $-16, %rsp\ncall reaper\nhlt\n"
        ".globl return_from_signal\nreturn_from_signal:\nmov $15, %eax\nsyscall\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n_start:\nmov x29, #0\nmov x0, sp\nbl reaper\n"
        ".globl return_from_signal\nreturn_from_signal:\nmov x8, #139\nsvc #0\n");
#endif
#define RESTORER 0x04000000 /* SA_RESTORER: x86_64 leaves the way back to the program */

void return_from_signal(void);
void reaper(char **stack) __attribute__((noreturn, used));

struct sbx_place run_place;
uint32_t run_number;
struct sbx_run run; /* shared by the processes of a resident, as all of their memory */

void exit_reaper(void) {
    for (;;)
        raw(__NR_exit_group, 0);
}

void fail_and_exit(enum sbx_step step, int index, long error) {
    sbx_fail(&run, step, index, error);
    write_record(SBX_RECORD_MAGIC);
    exit_reaper();
}

static void run_once(void) __attribute__((noreturn));
static void run_once(void) {
    static struct sbx_order order;
    static struct sbx_job job;
    static struct sbx_child c;
    long error = read_place();
    if (error < 0)
        fail_and_exit(SBX_STEP_CAPABILITIES, 0, error);
    if (IN_SESSION)
        await_command();
    error = receive_message(SBX_ORDER, &order, 0);
    if (error < 0)
        fail_and_exit(SBX_STEP_EXEC, -1, error);
    read_job(&order, &job, &c);
    if (!IN_SESSION) /* the child was there before it became the reaper */
        job.cwd = NULL;
    run_place.reaper = 0;
    c.run = &run;
    c.place = &run_place;
    c.root = c.tree = c.dev = -1;
    for (int i = 0; i < 3; i++)
        c.stdio[i] = i;
    if (WATCHES_CPU && order.cpu_ns && (error = watch_cpu_time(order.cpu_ns)) < 0)
        fail_and_exit(SBX_STEP_LIMITS, 0 /* RLIMIT_CPU */, error);
    long command = start_command(&c, 0);
    if (command >= 0 && order.announce)
        write_record(SBX_READY_MAGIC);
    if (command >= 0)
        run.wait_status = reap_until(command);
    if (!IN_SESSION
        && !kill_and_reap()) /* waiting counts their usage; the kernel would kill them as well */
        sbx_fail(&run, SBX_STEP_KILL, 0, -ETIMEDOUT);
    write_record(SBX_RECORD_MAGIC);
    exit_reaper();
}

/* STACK: what execve(2) puts there, the number of arguments first. The caller's core gives none but
 * the name; bwrap_words.py has two more for the session's program. */
void reaper(char **stack) {
    struct raw_sigaction action = {on_signal, RESTORER, return_from_signal, RAW_ALL_SIGNALS};
    struct sbx_order order;
    int cgroups[SBX_MOST_CGROUPS];
    if (IN_SESSION && (long)stack[0] == 3)
        exec_words(stack + 1, stack + 5);
    raw(__NR_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    raw(RAW_close_range, REAPER_STATUS_FD, ~0U, RAW_CLOSE_RANGE_CLOEXEC);
    raw(__NR_rt_sigaction, SIGCHLD, &action, 0, RAW_SIGSET_SIZE);
    use_small_buffer();
    run_number = 1;
    if (receive_message(SBX_PLACE, &order, cgroups) < 0)
        exit_reaper();
    if (WATCHES_CPU || !order.stays)
        run_once();
    run_number = 0;
    raw(__NR_rt_sigaction, RESIDENT_BELL, &action, 0, RAW_SIGSET_SIZE);
    resident_main(cgroups, order.n_fds);
}
