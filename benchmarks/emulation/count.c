/* A plugin of qemu 7.2 that counts the instructions that a guest executes; interface version 1.

   gcc -shared -fPIC -O2 -o count.so count.c
   COUNT=FILE qemu-aarch64 -plugin ./count.so PROGRAM

   At each sched_yield() of the guest, and at exit, the number so far goes to FILE, a line each. It
   is a sum over threads. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define EXPORT __attribute__((visibility("default")))

/* The part of qemu-plugin.h that is used. */
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
typedef void (*translated_callback)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*exit_callback)(qemu_plugin_id_t, void *);
typedef void (*syscall_callback)(qemu_plugin_id_t, unsigned int, int64_t, uint64_t, uint64_t,
                                 uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_callback);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, exit_callback, void *);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_callback);

EXPORT int qemu_plugin_version = 1;
static const int INLINE_ADD = 0;
/* Number of the call on aarch64. */
static const int64_t SCHED_YIELD = 124;
static uint64_t executed;
static FILE *file;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block) {
  qemu_plugin_register_vcpu_tb_exec_inline(block, INLINE_ADD, &executed, qemu_plugin_tb_n_insns(block));
}

static void write_count(void) {
  fprintf(file, "%llu\n", (unsigned long long)executed);
  fflush(file);
}

static void called(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2,
                   uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  if (number == SCHED_YIELD) write_count();
}

static void finished(qemu_plugin_id_t id, void *unused) { write_count(); }

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
  const char *path = getenv("COUNT");
  file = path ? fopen(path, "w") : stderr;
  if (!file) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  qemu_plugin_register_atexit_cb(id, finished, NULL);
  return 0;
}
