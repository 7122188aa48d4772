/* routes.c - every route, once.  The order of the table is the order of the documentation. */
#include "rest/rest.h"

const struct http_route rest_routes[] = {
    {HTTP_GET, "/v1/health", rest_health, .no_body = true},
    {HTTP_GET, "/v1/version", rest_version, .no_body = true},
    {HTTP_GET, "/v1/host", rest_host, .no_body = true},
    {HTTP_GET, "/v1/host/leaks", rest_leaks, .no_body = true},
    {HTTP_POST, "/v1/host/leaks/reap", rest_leaks_reap},
    {HTTP_POST, "/v1/host/adopt", rest_adopt},
    {HTTP_GET, "/v1/errors", rest_errors, .no_body = true},
    {HTTP_GET, "/v1/errors/{code}", rest_error, .no_body = true},
    {HTTP_GET, "/v1/openapi.yaml", rest_openapi, .no_body = true},
    {HTTP_GET, "/metrics", rest_metrics, .no_body = true},

    {HTTP_GET, "/v1/vms", rest_vms_list, .no_body = true},
    {HTTP_POST, "/v1/vms", rest_vm_create},
    {HTTP_GET, "/v1/vms/{vm}", rest_vm_get, .no_body = true},
    {HTTP_PATCH, "/v1/vms/{vm}", rest_vm_patch, .merge_patch = true},
    {HTTP_DELETE, "/v1/vms/{vm}", rest_vm_destroy, .no_body = true},

    {HTTP_POST, "/v1/vms/{vm}/start", rest_vm_start},
    {HTTP_POST, "/v1/vms/{vm}/stop", rest_vm_stop},
    {HTTP_POST, "/v1/vms/{vm}/kill", rest_vm_kill},
    {HTTP_POST, "/v1/vms/{vm}/restart", rest_vm_restart},
    {HTTP_POST, "/v1/vms/{vm}/reset", rest_vm_reset},
    {HTTP_POST, "/v1/vms/{vm}/suspend", rest_vm_suspend},
    {HTTP_POST, "/v1/vms/{vm}/resume", rest_vm_resume},

    {HTTP_GET, "/v1/vms/{vm}/wait", rest_vm_wait, .no_body = true},
    {HTTP_GET, "/v1/vms/{vm}/explain", rest_vm_explain, .no_body = true},
    {HTTP_GET, "/v1/vms/{vm}/logs/console", rest_vm_log_console, .no_body = true},
    {HTTP_GET, "/v1/vms/{vm}/logs/vmm", rest_vm_log_vmm, .no_body = true},
    {HTTP_GET, "/v1/vms/{vm}/console", rest_vm_console, .no_body = true},
    {HTTP_GET, "/v1/vms/{vm}/vnc", rest_vm_vnc, .no_body = true},
    {HTTP_GET, "/v1/vms/{vm}/ssh", rest_vm_ssh, .no_body = true},
    {HTTP_POST, "/v1/vms/{vm}/exec", rest_vm_exec},
    {HTTP_GET, "/v1/vms/{vm}/files", rest_files_get, .no_body = true},
    {HTTP_PUT, "/v1/vms/{vm}/files", rest_files_put, .stream_body = true},
    {HTTP_DELETE, "/v1/vms/{vm}/files", rest_files_delete, .no_body = true},
    {HTTP_POST, "/v1/vms/{vm}/files/mkdir", rest_files_mkdir},
    {HTTP_POST, "/v1/vms/{vm}/files/rename", rest_files_rename},

    {HTTP_GET, "/v1/operations", rest_operations_list, .no_body = true},
    {HTTP_GET, "/v1/operations/{id}", rest_operation_get, .no_body = true},
    {HTTP_DELETE, "/v1/operations/{id}", rest_operation_cancel, .no_body = true},
    {HTTP_GET, "/v1/events", rest_events, .no_body = true},
    {0},
};
