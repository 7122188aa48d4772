/* table.c - every command of vmctl with its options: lookup, usage, help and completion come from these tables. */
#include "cli.h"

const struct option_def global_options[] = {
    {"socket", 0, "PATH", NULL, "the daemon's Unix socket (VMMD_SOCKET)"},
    {"url", 0, "URL", NULL, "the daemon's address over TCP (VMMD_URL; token in VMMD_TOKEN)"},
    {"output", 'o', "FORMAT", "table json name", "table, json or name"},
    {"no-wait", 0, NULL, NULL, "do not wait for the operation to end"},
    {"help", 'h', NULL, NULL, "show how the command is used"},
    {"version", 0, NULL, NULL, "show vmctl's version"},
    {0},
};

static const struct option_def create_options[] = {
    {"name", 0, "NAME", NULL, "the VM's name, in place of the word NAME"},
    {"image", 0, "NAME|PATH", NULL, "image of the cache, or disk image on this host, to start from"},
    {"image-url", 0, "URL", NULL, "pull the image from here first; --image wins over it"},
    {"image-sha256", 0, "DIGEST", NULL, "what the digest of --image-url must be"},
    {"vcpus", 0, "N", NULL, "virtual CPUs (1)"},
    {"memory", 0, "MIB", NULL, "memory in MiB (1024)"},
    {"disk", 0, "GIB", NULL, "disk size in GiB, never smaller than the image"},
    {"network", 0, "TYPE", "user tap none", "user (default), tap or none"},
    {"bridge", 0, "NAME", NULL, "bridge to attach to; means --network tap"},
    {"forward", 0, "[IP:]HOST:GUEST[/PROTO]", NULL,
     "forward a host port to the guest; may be repeated; HOST 0 is chosen"},
    {"cloud-init", 0, "FILE", NULL, "cloud-init user-data, passed as it is"},
    {"ssh-key", 0, "FILE", NULL, "public key file for the guest's user; may be repeated"},
    {"hostname", 0, "NAME", NULL, "the guest's host name, by cloud-init"},
    {"uefi", 0, NULL, NULL, "boot by UEFI (q35)"},
    {"start", 0, NULL, NULL, "start the VM once it is made"},
    {"backend", 0, "NAME", "qemu noop", "qemu (default) or noop"},
    {"label", 0, "KEY=VALUE", NULL, "label the VM; may be repeated"},
    {"machine", 0, "TYPE", "q35 microvm", "q35 (default) or microvm"},
    {"accel", 0, "NAME", "auto kvm tcg", "auto (default), kvm or tcg"},
    {"kernel", 0, "PATH", NULL, "boot this kernel directly"},
    {"initrd", 0, "PATH", NULL, "initrd of the kernel"},
    {"cmdline", 0, "TEXT", NULL, "command line of the kernel"},
    {"display", 0, "TYPE", "none vga", "none (default) or vga"},
    {"restart", 0, "POLICY", "never on-failure always", "never (default), on-failure or always"},
    {"autostart", 0, NULL, NULL, "start the VM with the host"},
    {"protect", 0, NULL, NULL, "refuse to destroy the VM"},
    {"spec", 0, "FILE", NULL, "spec as JSON (- is stdin); other options go over it"},
    {"inline", 0, "COMMAND", NULL,
     "provisioning step of the spec: run this by /bin/sh; may be repeated, in order with the next two"},
    {"script", 0, "FILE", NULL, "provisioning step of the spec: run this script by its own shebang"},
    {"file", 0, "SOURCE:/DEST[:MODE]", NULL, "provisioning step of the spec: put this file there"},
    {"provision", 0, NULL, NULL, "run the spec's provisioning steps once the guest is ready; means --start"},
    {"wait", 0, "CONDITION", VM_STATES " " VM_CONDITIONS,
     "wait until the VM has come to this (ready); may be repeated; means --start"},
    {"timeout", 0, "SECONDS", NULL, "give up --wait after so long (300)"},
    {"idempotency-key", 0, "KEY", NULL, "repeat a request safely: the same key answers the same operation"},
    {0},
};

static const struct option_def provision_options[] = {
    {"inline", 0, "COMMAND", NULL,
     "in place of the spec's steps: run this by /bin/sh; may be repeated, in order with the next two"},
    {"script", 0, "FILE", NULL, "in place of the spec's steps: run this script by its own shebang"},
    {"file", 0, "SOURCE:/DEST[:MODE]", NULL, "in place of the spec's steps: put this file there"},
    {"steps", 0, "FILE", NULL, "steps as a JSON list (- is stdin), before those of the command line"},
    {"user", 'u', "NAME", NULL, "run the given steps as this user (root, where it is to be had)"},
    {"env", 'e', "NAME=VALUE", NULL, "set an environment variable for the given steps; may be repeated"},
    {"timeout", 0, "SECONDS", NULL, "kill a given step after so long (600)"},
    {"once", 0, NULL, NULL, "skip given steps that have succeeded in this VM before"},
    {"idempotency-key", 0, "KEY", NULL, "repeat a request safely: the same key answers the same operation"},
    {0},
};

static const struct option_def verb_options[] = {
    {"idempotency-key", 0, "KEY", NULL, "repeat a request safely (one NAME only)"},
    {0},
};

static const struct option_def stop_options[] = {
    {"all", 0, NULL, NULL, "every VM that runs or is suspended, side by side; the timeout is for all together"},
    {"timeout", 0, "SECONDS", NULL, "how long the guest has to power off before it is ended (30)"},
    {"idempotency-key", 0, "KEY", NULL, "repeat a request safely (one NAME only)"},
    {0},
};

static const struct option_def list_options[] = {
    {"state", 0, "STATE", VM_STATES, "only VMs in this state"},
    {"backend", 0, "NAME", "qemu noop", "only VMs of this backend"},
    {"label", 0, "KEY=VALUE", NULL, "only VMs with this label; may be repeated"},
    {"name", 0, "GLOB", NULL, "only VMs whose name matches"},
    {0},
};

static const struct option_def wait_options[] = {
    {"for", 0, "CONDITION", VM_STATES " " VM_CONDITIONS,
     "a state (running, state:running) or condition; may be repeated (ready)"},
    {"timeout", 0, "SECONDS", NULL, "give up after so long (60)"},
    {0},
};

static const struct option_def log_options[] = {
    {"console", 0, NULL, NULL, "what the guest wrote on its console (default, with --provision where there was one)"},
    {"vmm", 0, NULL, NULL, "what QEMU wrote on its stderr"},
    {"provision", 0, NULL, NULL, "what the provisioning steps wrote"},
    {"tail", 'n', "LINES", NULL, "only the last lines; 0 is all (0)"},
    {"follow", 'f', NULL, NULL, "go on with what is written from now on"},
    {0},
};

static const struct option_def console_options[] = {
    {"force", 0, NULL, NULL, "take the console from the client that holds it"},
    {"from", 0, "OFFSET", NULL, "show the console's log from this offset first"},
    {0},
};

static const struct option_def exec_options[] = {
    {"interactive", 'i', NULL, NULL, "give the command what stdin has, at most 700 KiB"},
    {"tty", 't', NULL, NULL, "give the command a terminal, by the system's ssh"},
    {"env", 'e', "NAME=VALUE", NULL, "set an environment variable; may be repeated"},
    {"cwd", 0, "DIR", NULL, "run it in this directory (the user's home)"},
    {"user", 'u', "NAME", NULL, "as this user of the guest (the VM's ssh.user)"},
    {"timeout", 0, "SECONDS", NULL, "kill it after so long (86400)"},
    {"via", 0, "CHANNEL", "auto ssh agent vsock", "auto (default), ssh, agent or vsock"},
    {0},
};

static const struct option_def ssh_options[] = {
    {"user", 'u', "NAME", NULL, "log in as this user (the VM's ssh.user)"},
    {"key", 'i', "FILE", NULL, "private key in place of the VM's"},
    {0},
};

static const struct option_def cp_options[] = {
    {"recursive", 'r', NULL, NULL, "directories with all they hold"},
    {"key", 'i', "FILE", NULL, "by the system's scp, with this private key"},
    {0},
};

static const struct option_def events_options[] = {
    {"since", 0, "ID", NULL, "begin after this event"},
    {"vm", 0, "NAME", NULL, "only events of this VM"},
    {"type", 0, "GLOB", NULL, "only events of these types, e.g. 'vm.*'"},
    {"follow", 'f', NULL, NULL, "go on with events to come (default)"},
    {"no-follow", 0, NULL, NULL, "end after the events there are; without --since from the oldest kept"},
    {0},
};

static const struct option_def ops_options[] = {
    {"state", 0, "STATE", "pending running succeeded failed cancelled", "list only operations in this state"},
    {"limit", 'n', "N", NULL, "list at most so many (100)"},
    {0},
};

static const struct option_def doctor_options[] = {
    {"reap", 0, NULL, NULL, "remove what no VM owns and what is old enough"},
    {"dry-run", 0, NULL, NULL, "show what --reap would do, and do nothing"},
    {"older-than", 0, "SECONDS", NULL, "remove only what is so old (the daemon's grace time)"},
    {0},
};

static const struct option_def adopt_options[] = {
    {"all", 0, NULL, NULL, "adopt all that can be adopted"},
    {0},
};

static const struct option_def image_options[] = {
    {"name", 0, "NAME", NULL, "the image's name in the cache (pull, upload), or the new image's (convert)"},
    {"sha256", 0, "DIGEST", NULL, "what the digest of the bytes must be (pull, upload)"},
    {"format", 0, "FORMAT", "qcow2 raw vmdk vdi vhdx vpc",
     "as it comes (pull, upload), or as it becomes (convert; qcow2)"},
    {"dry-run", 0, NULL, NULL, "only say what would be removed (prune)"},
    {"idempotency-key", 0, "KEY", NULL, "repeat a request safely (pull, convert)"},
    {0},
};

const struct command commands[] = {
    {"create", "[NAME]", "make a VM", WORD_NONE, 0, 1, create_options, cmd_create},
    {"start", "NAME…", "start VMs", WORD_VM, 1, WORDS_MAX, verb_options, cmd_start},
    {"stop", "NAME… | --all", "power VMs off: by ACPI, then by force", WORD_VM, 0, WORDS_MAX, stop_options, cmd_stop},
    {"kill", "NAME…", "end VMs at once", WORD_VM, 1, WORDS_MAX, verb_options, cmd_kill},
    {"reset", "NAME…", "press the reset button of VMs", WORD_VM, 1, WORDS_MAX, verb_options, cmd_reset},
    {"restart", "NAME…", "stop VMs and start them again", WORD_VM, 1, WORDS_MAX, verb_options, cmd_restart},
    {"suspend", "NAME…", "pause VMs", WORD_VM, 1, WORDS_MAX, verb_options, cmd_suspend},
    {"resume", "NAME…", "let suspended VMs go on", WORD_VM, 1, WORDS_MAX, verb_options, cmd_resume},
    {"destroy", "NAME…", "end VMs and remove all they had", WORD_VM, 1, WORDS_MAX, NULL, cmd_destroy},
    {"list", "", "list VMs", WORD_NONE, 0, 0, list_options, cmd_list},
    {"status", "NAME…", "show VMs in full", WORD_VM, 1, WORDS_MAX, NULL, cmd_status},
    {"explain", "NAME", "show why a VM is in its state", WORD_VM, 1, 1, NULL, cmd_explain},
    {"wait", "NAME", "wait until a VM has come to a state or condition", WORD_VM, 1, 1, wait_options, cmd_wait},
    {"log", "NAME", "show what a VM wrote", WORD_VM, 1, 1, log_options, cmd_log},
    {"console", "NAME", "attach to a VM's serial console; Ctrl+] detaches", WORD_VM, 1, 1, console_options,
     cmd_console},
    {"provision", "NAME", "run provisioning steps in a guest", WORD_VM, 1, 1, provision_options, cmd_provision},
    {"exec", "NAME -- COMMAND…", "run a command in a guest; its exit code is vmctl's", WORD_VM, 2, WORDS_MAX,
     exec_options, cmd_exec, 1},
    {"ssh", "[NAME] [-- COMMAND…]", "log in to a guest by the system's ssh", WORD_VM, 0, WORDS_MAX, ssh_options,
     cmd_ssh, 1},
    {"cp", "SOURCE… TARGET", "copy files to or from a guest, whose files are NAME:PATH", WORD_NONE, 2, WORDS_MAX,
     cp_options, cmd_cp},
    {"ssh-config", "NAME…", "write what ~/.ssh/config needs to know of VMs", WORD_VM, 1, WORDS_MAX, NULL,
     cmd_ssh_config},
    {"events", "", "show what happens, as it happens", WORD_NONE, 0, 0, events_options, cmd_events},
    {"ops", "[list | show ID | cancel ID]", "list, show or cancel operations", WORD_OPERATION, 0, 2, ops_options,
     cmd_ops},
    {"doctor", "", "show what no VM owns on the host, and remove it", WORD_NONE, 0, 0, doctor_options, cmd_doctor},
    {"adopt", "[NAME… | --all]", "take back VMs that the database does not know", WORD_ADOPTABLE, 0, WORDS_MAX,
     adopt_options, cmd_adopt},
    {"image", "[list | pull URL | inspect NAME|PATH | rm NAME… | convert NAME | prune | upload FILE]",
     "look after the image cache", WORD_IMAGE, 0, WORDS_MAX, image_options, cmd_image},
    {"host", "", "show what this host can do", WORD_NONE, 0, 0, NULL, cmd_host},
    {"errors", "[CODE]", "list the error codes, or explain one", WORD_CODE, 0, 1, NULL, cmd_errors},
    {"version", "", "show the versions of vmctl and of the daemon", WORD_NONE, 0, 0, NULL, cmd_version},
    {"completion", "bash | zsh | fish", "write a completion script for a shell", WORD_SHELL, 1, 1, NULL,
     cmd_completion},
    {"help", "[COMMAND]", "show how a command is used", WORD_COMMAND, 0, 1, NULL, cmd_help},
    {0},
};
