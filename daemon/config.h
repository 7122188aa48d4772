/* config.h - flags and config file: what the daemon is told.  Before the loop runs, and at SIGHUP. */
#ifndef CONFIG_H
#define CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/log.h"

enum { CONFIG_LIST_MAX = 16 };

/* Strings are owned; a list ends with NULL. */
struct config {
    char *data_dir;
    char *runtime_dir;
    char *socket;
    char *socket_group;
    char *listen[CONFIG_LIST_MAX + 1];
    char *image_dirs[CONFIG_LIST_MAX + 1];
    char *lease_files[CONFIG_LIST_MAX + 1];
    char *token_file;
    char *qemu;
    bool no_auth;
    enum log_level log_level;
    bool log_json;
    int64_t max_vms, max_operations, max_operations_per_vm, max_connections, max_waits, max_streams, max_open_files;
    int64_t rate_limit, rate_burst;
    int64_t operations_keep_s, events_keep;
    int64_t max_execs, max_execs_per_vm;
    int64_t console_log_kb, vmm_log_kb;
    int64_t max_image_gb;
    int64_t memory_reserve_mb;
    int64_t restart_delay_ms, restart_max, restart_window_s;
    int64_t disk_reserve_mb;
    char *fetch_allow[CONFIG_LIST_MAX + 1];
    char *fetch_plain_http[CONFIG_LIST_MAX + 1];
    char *fetch_ca_file;
    int64_t fetch_stall_s, fetch_timeout_s;
    int64_t cloud_init_timeout_s;
    int64_t shutdown_grace_s;
    int64_t reconcile_interval_s, reap_grace_s;
};

void config_defaults(struct config *config);
/* Reads `key = value` lines over what is there; ERR_API_INVALID_FIELD with FILE:LINE in its message for an unknown key or a bad
 * value, ERR_IO for a file that cannot be read. */
int config_load(struct config *config, const char *path, struct error *err);
/* Sets one key, as a line of the file would; `where` begins the message. */
int config_set(struct config *config, const char *key, const char *value, const char *where, struct error *err);
/* Fills in the directories that depend on who runs it.  ERR_IO when a user has neither XDG_RUNTIME_DIR nor HOME. */
int config_finish(struct config *config, struct error *err);
/* The file used without --config, or NULL if there is none (mem_free). */
char *config_default_path(void);
void config_done(struct config *config);

#endif
