# vmmd - a VM manager daemon, and vmctl, its command line.
#
#   make demo     a real guest through its whole life, in one command
#   make check    every test
#
# `make help` lists the rest.  Everything is built below build/.

VERSION  := 0.1.0
PREFIX   ?= /usr/local
DESTDIR  ?=
BUILD    ?= build
CC       ?= cc
PYTHON   ?= /usr/bin/python3

SBINDIR   = $(PREFIX)/sbin
BINDIR    = $(PREFIX)/bin
LIBEXEC   = $(PREFIX)/libexec/vmmd
DATADIR   = $(PREFIX)/share
MANDIR    = $(PREFIX)/share/man
DOCDIR    = $(PREFIX)/share/doc/vmmd
UNITDIR  ?= $(PREFIX)/lib/systemd/system
SYSUSERSDIR ?= $(PREFIX)/lib/sysusers.d
TMPFILESDIR ?= $(PREFIX)/lib/tmpfiles.d

PACKAGES := libmicrohttpd jansson sqlite3 libuv libcurl libssh libarchive libseccomp nettle zlib liblzma libzstd
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wconversion -Wvla -Wno-missing-field-initializers -Werror
# 5: the attribute and no comment says that a case falls through; clang takes nothing else and no number.
WARNINGS += $(if $(findstring clang,$(CC)),-Wimplicit-fallthrough,-Wimplicit-fallthrough=5)
OPTIMISE ?= -O2 -g
SANITIZE ?=
HARDEN   ?= -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE
CRASH_POINTS ?=
LIBS_FOUND := $(shell pkg-config --exists $(PACKAGES) 2>/dev/null && echo yes)
CPPFLAGS += -D_GNU_SOURCE -DVMMD_VERSION='"$(VERSION)"' -Idaemon -Iapi -I$(BUILD)/gen $(if $(CRASH_POINTS),-DVMMD_CRASH_POINTS)
CFLAGS   += -std=gnu17 $(OPTIMISE) $(WARNINGS) $(HARDEN) $(SANITIZE) -pthread
CFLAGS   += $(if $(LIBS_FOUND),$(shell pkg-config --cflags $(PACKAGES) 2>/dev/null))
LDFLAGS  += $(SANITIZE) -pie -Wl,-z,relro,-z,now -pthread
CFLAGS   := $(CFLAGS)

LIB_SRC    := $(filter-out daemon/main.c,$(wildcard daemon/*.c daemon/base/*.c daemon/loop/*.c daemon/model/*.c daemon/qmp/*.c daemon/guest/*.c \
              daemon/image/*.c daemon/net/*.c daemon/cloudinit/*.c daemon/backend/*.c daemon/backend/*/*.c \
              daemon/store/*.c daemon/core/*.c daemon/core/ops/*.c daemon/rest/*.c daemon/http/*.c))
LIB_OBJ    := $(LIB_SRC:%.c=$(BUILD)/obj/%.o)
BASE_OBJ   := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard daemon/base/*.c))
CLIENT_OBJ := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard client/*.c))
HELPERS    := $(patsubst daemon/helpers/%.c,$(BUILD)/%,$(wildcard daemon/helpers/*.c))
CAGE_OBJ   := $(BUILD)/obj/daemon/helpers/cage/cage.o
FETCH_OBJ  := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard daemon/helpers/fetch/*.c))
SSH_OBJ    := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard daemon/helpers/ssh/*.c))
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
OPS_TESTS  := $(patsubst tests/ops/%.c,$(BUILD)/tests/%,$(wildcard tests/ops/test_*.c))
FAULT_TESTS := $(patsubst tests/fault/%.c,$(BUILD)/tests/%,$(wildcard tests/fault/test_*.c))
OPS_LIB    := $(BUILD)/obj/tests/ops/core_bed.o $(BUILD)/obj/tests/ops/image_bed.o
C_TESTS    := $(UNIT_TESTS) $(OPS_TESTS) $(FAULT_TESTS)
TEST_LIB   := $(patsubst %.c,$(BUILD)/obj/%.o,$(filter-out $(wildcard tests/unit/test_*.c),$(wildcard tests/unit/*.c)))
BENCHES    := $(patsubst tests/bench/%.c,$(BUILD)/bench/%,$(wildcard tests/bench/*.c))
MANUALS    := $(patsubst contrib/man/%.scd,$(BUILD)/man/%,$(wildcard contrib/man/*.scd))

DAEMON_LIBS = $(shell pkg-config --libs libmicrohttpd jansson sqlite3 libuv libarchive nettle)
CLIENT_LIBS = $(shell pkg-config --libs libcurl jansson)
HELPER_LIBS = $(shell pkg-config --libs libseccomp jansson)
FETCH_LIBS  = $(shell pkg-config --libs libcurl nettle zlib liblzma libzstd)

export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SUFFIXES:

##@ Build

.PHONY: all
all: $(BUILD)/vmmd $(BUILD)/vmctl $(HELPERS) ## build vmmd, vmctl and the helpers

$(BUILD)/vmmd: $(BUILD)/obj/daemon/main.o $(BUILD)/libvmmd.a
	$(CC) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS)

$(BUILD)/vmctl: $(CLIENT_OBJ) $(BASE_OBJ)
	$(CC) $(LDFLAGS) -o $@ $^ $(CLIENT_LIBS)

$(HELPERS): $(BUILD)/%: $(BUILD)/obj/daemon/helpers/%.o $(CAGE_OBJ) $(BASE_OBJ)
	$(CC) $(LDFLAGS) -o $@ $^ $(HELPER_LIBS)
$(BUILD)/vmmd-fetch: $(FETCH_OBJ)
$(BUILD)/vmmd-fetch: HELPER_LIBS += $(FETCH_LIBS)

$(BUILD)/vmmd-ssh: $(SSH_OBJ)
$(BUILD)/vmmd-ssh: HELPER_LIBS += $(shell pkg-config --libs libssh)

$(BUILD)/libvmmd.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $^

# These files change with the compiler and its flags, or with PREFIX; what was built with others is built anew.
$(BUILD)/obj/%.o: %.c $(BUILD)/gen/flags
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/gen/flags: export FLAGS = $(CC) $(CPPFLAGS) $(CFLAGS)
$(BUILD)/gen/flags: FORCE $(if $(LIBS_FOUND),,missing-libraries)
	@mkdir -p $(@D)
	@printf '%s\n' "$$FLAGS" | cmp -s - $@ || printf '%s\n' "$$FLAGS" >$@

$(BUILD)/gen/libexec: FORCE
	@mkdir -p $(@D)
	@echo '$(LIBEXEC)' | cmp -s - $@ || echo '$(LIBEXEC)' >$@
# Where the helpers are when installed.
$(BUILD)/obj/daemon/main.o $(BUILD)/obj/client/cmd_image.o: $(BUILD)/gen/libexec
$(BUILD)/obj/daemon/main.o $(BUILD)/obj/client/cmd_image.o: CPPFLAGS += -DVMMD_LIBEXEC='"$(LIBEXEC)"'

.PHONY: FORCE missing-libraries
FORCE:
missing-libraries:
	@contrib/deps.sh --need build || exit 1
	@echo "pkg-config does not find all of: $(PACKAGES)" >&2; exit 1

# The contract, as a C array inside the daemon.
$(BUILD)/gen/openapi_yaml.h: api/openapi.yaml
	@mkdir -p $(@D)
	{ echo 'static const unsigned char openapi_yaml[] = {'; od -An -v -tx1 $< | sed 's/ \(..\)/0x\1,/g'; echo '0};'; } > $@

$(BUILD)/obj/daemon/rest/meta.o: $(BUILD)/gen/openapi_yaml.h

$(UNIT_TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/unit/%.o $(TEST_LIB) $(BUILD)/libvmmd.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS) -lcmocka

$(OPS_TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/ops/%.o $(OPS_LIB) $(TEST_LIB) $(BUILD)/libvmmd.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS) -lcmocka

$(FAULT_TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/fault/%.o $(OPS_LIB) $(TEST_LIB) $(BUILD)/libvmmd.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS) -lcmocka

$(BENCHES): $(BUILD)/bench/%: $(BUILD)/obj/tests/bench/%.o $(BUILD)/libvmmd.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS)

$(MANUALS): $(BUILD)/man/%: contrib/man/%.scd
	@mkdir -p $(@D)
	@command -v scdoc >/dev/null || contrib/deps.sh --need build
	scdoc <$< >$@

.PHONY: c-tests manuals benches
c-tests: $(C_TESTS)
manuals: $(MANUALS)
benches: $(BENCHES)

# One build of the guest serves every build of the daemon.
GUEST_FILES := $(addprefix build/guest/,vmlinuz initrd.img tiny.qcow2)
.PHONY: guest
guest: $(GUEST_FILES) ## build the test guest: build/guest/{vmlinuz,initrd.img,tiny.qcow2}
$(GUEST_FILES) &: contrib/guest/build.sh contrib/guest/disk.sh $(shell find contrib/guest/rootfs)
	@contrib/deps.sh --need guest
	contrib/guest/build.sh build/guest

# What it is made from is looked up each time; made is it only once.
.PHONY: guest-debian
guest-debian: ## a stock Debian 12 cloud guest: build/guest/debian-12.qcow2 and .xz; about a minute, kept between builds
	@contrib/deps.sh --need debian
	contrib/guest/debian.sh build/guest

##@ Debian packages

.PHONY: deps deps-all
deps: ## install what is missing to build vmmd, to run it and to make the guest
	@contrib/deps.sh build run guest

deps-all: ## … and to test it
	@contrib/deps.sh build run guest debian test lint valgrind clang

##@ Try it

.PHONY: demo
demo: ## a real guest through its whole life, by curl and vmctl
	@MAKE='$(MAKE)' contrib/demo/demo.sh

##@ Tests

PYTEST     = $(PYTHON) -m pytest -q -n 3
RUN_C      = tests/lib/run-c-tests.sh
NEED_TESTS = @contrib/deps.sh --need build run test

.PHONY: check check-unit check-http check-cli check-e2e check-debian check-storm check-crash soak
check: ## everything: packages, build, guest, lint and all tests
	@MAKE='$(MAKE)' PYTHON='$(PYTHON)' tests/lib/check.sh

check-unit: all c-tests ## the tests in C
	@VMMD_BUILD=$(BUILD) $(RUN_C) $(C_TESTS)

check-http: all ## the API, from outside
	$(NEED_TESTS)
	@$(PYTEST) tests/http

check-cli: all ## vmctl, from outside
	$(NEED_TESTS)
	@$(PYTEST) tests/cli

check-e2e: all guest ## real guests
	$(NEED_TESTS)
	@$(PYTEST) tests/e2e

check-debian: all guest guest-debian ## a Debian cloud guest, which boots in a minute (DEBIAN="-k proof": one boot)
	$(NEED_TESTS)
	@$(PYTHON) -m pytest -q tests/debian $(DEBIAN)

check-storm: all ## random clients, ends, kills and restarts (STORM="--seed 7 --seconds 300")
	@$(PYTHON) tests/fault/stress.py $(STORM)

# Crash points are in a build of their own, and in no other (daemon/base/crash.h).
check-crash: guest ## kill -9 at every point of every operation, and a table of what became of it (CRASH="--backend noop")
	$(NEED_TESTS)
	@$(MAKE) --no-print-directory -s BUILD=build-crash CRASH_POINTS=yes all
	@VMMD_BIN=$(CURDIR)/build-crash/vmmd $(PYTHON) tests/fault/crash.py $(CRASH)

SOAK_S ?= 3600
soak: all guest ## an hour of random verbs, kills and restarts against a model (SOAK_S=600 SOAK_SEED=7)
	$(NEED_TESTS)
	@$(PYTHON) tests/fault/soak.py --seconds $(SOAK_S) $(if $(SOAK_SEED),--seed $(SOAK_SEED))

# Each sanitizer has a build of its own, and C tests and black box tests that stay away from QEMU run on it.
ASAN_FLAGS = BUILD=build-asan SANITIZE='-fsanitize=address,undefined -fno-sanitize-recover=undefined' HARDEN=-fPIE OPTIMISE='-O1 -g -fno-omit-frame-pointer'
TSAN_FLAGS = BUILD=build-tsan SANITIZE=-fsanitize=thread HARDEN=-fPIE OPTIMISE='-O1 -g -fno-omit-frame-pointer'
ASAN_TESTS ?= tests/http tests/cli
TSAN_TESTS ?= tests/http/test_lifecycle.py tests/http/test_operations.py tests/http/test_events.py tests/http/test_restart.py
# The sanitized programs, with a deadline stretched for them and coverage kept apart.
sanitized = VMMD_BIN=$(CURDIR)/$(1)/vmmd VMCTL_BIN=$(CURDIR)/$(1)/vmctl VMMD_TEST_SLOW=4 VMMD_SANITIZED=yes VMMD_COVERAGE_DIR=$(CURDIR)/$(1)/coverage

.PHONY: check-asan check-tsan check-valgrind
check-asan: export ASAN_OPTIONS = detect_leaks=1:detect_stack_use_after_return=1:strict_string_checks=1
check-asan: export UBSAN_OPTIONS = print_stacktrace=1
check-asan: ## C tests, API and vmctl under AddressSanitizer and UndefinedBehaviorSanitizer
	$(NEED_TESTS)
	@$(MAKE) --no-print-directory $(ASAN_FLAGS) all c-tests
	@status=0; $(MAKE) --no-print-directory $(ASAN_FLAGS) RUN_C='$(RUN_C) -t 300' check-unit || status=1; \
	    $(call sanitized,build-asan) $(PYTEST) $(ASAN_TESTS) || status=1; exit $$status

check-tsan: export TSAN_OPTIONS = halt_on_error=0 second_deadlock_stack=1
check-tsan: ## C tests and a part of the API's under ThreadSanitizer
	$(NEED_TESTS)
	@$(MAKE) --no-print-directory $(TSAN_FLAGS) all c-tests
	@status=0; $(MAKE) --no-print-directory $(TSAN_FLAGS) RUN_C='$(RUN_C) -t 300 -w "setarch -R"' check-unit || status=1; \
	    $(call sanitized,build-tsan) setarch -R $(PYTEST) $(TSAN_TESTS) || status=1; exit $$status

# valgrind 3.19 knows no pidfd_open(2): what watches processes cannot run under it.
VALGRIND_CANNOT = test_child test_inspect test_qemu_backend test_image_matrix test_alloc_images
VALGRIND = valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite,indirect --child-silent-after-fork=yes
check-valgrind: all c-tests ## the unit tests under valgrind
	@contrib/deps.sh --need build test valgrind
	@for test in $(VALGRIND_CANNOT); do echo "$$test: not run: valgrind 3.19 does not know pidfd_open"; done
	@$(RUN_C) -t 600 -w '$(VALGRIND)' $(filter-out $(addprefix $(BUILD)/tests/,$(VALGRIND_CANNOT)),$(UNIT_TESTS))

.PHONY: lint format bench
lint: all manuals ## the rules of the house
	@contrib/deps.sh --need build test lint
	@PYTHON='$(PYTHON)' BUILD='$(BUILD)' tests/lint/run.sh

format: ## clang-format over all C
	@contrib/deps.sh --need lint
	@find daemon client tests -name '*.[ch]' | xargs clang-format -i

bench: all benches guest ## speed and size, as ratios
	@contrib/deps.sh --need build run test
	@tests/bench/run.sh

##@ Install (DESTDIR, PREFIX)

# What install makes and uninstall removes.
INSTALLED = $(SBINDIR)/vmmd $(BINDIR)/vmctl $(patsubst $(BUILD)/%,$(LIBEXEC)/%,$(HELPERS)) \
    $(UNITDIR)/vmmd.service $(UNITDIR)/vmmd.socket $(UNITDIR)/vmmd-guests.service $(SYSUSERSDIR)/vmmd.conf $(TMPFILESDIR)/vmmd.conf \
    $(foreach page,$(notdir $(MANUALS)),$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(page)) \
    $(DATADIR)/bash-completion/completions/vmctl $(DATADIR)/zsh/site-functions/_vmctl \
    $(DATADIR)/fish/vendor_completions.d/vmctl.fish \
    $(DOCDIR)/README.md $(DOCDIR)/CHANGELOG.md $(DOCDIR)/errors.md $(DOCDIR)/reliability.md $(DOCDIR)/openapi.yaml $(DOCDIR)/LICENSE

$(BUILD)/completions/%: $(BUILD)/vmctl
	@mkdir -p $(@D)
	@$< completion $* >$@

.PHONY: install uninstall
install: all manuals $(BUILD)/completions/bash $(BUILD)/completions/zsh $(BUILD)/completions/fish ## install
	@mkdir -p $(addprefix $(DESTDIR),$(sort $(dir $(INSTALLED))))
	install -m 755 $(BUILD)/vmmd $(DESTDIR)$(SBINDIR)/vmmd
	install -m 755 $(BUILD)/vmctl $(DESTDIR)$(BINDIR)/vmctl
	install -m 755 $(HELPERS) $(DESTDIR)$(LIBEXEC)/
	@sed 's|/usr/sbin/vmmd|$(SBINDIR)/vmmd|' systemd/vmmd.service >$(BUILD)/vmmd.service
	@sed 's|/usr/bin/vmctl|$(BINDIR)/vmctl|' systemd/vmmd-guests.service >$(BUILD)/vmmd-guests.service
	install -m 644 $(BUILD)/vmmd.service $(BUILD)/vmmd-guests.service systemd/vmmd.socket $(DESTDIR)$(UNITDIR)/
	install -m 644 systemd/vmmd.sysusers $(DESTDIR)$(SYSUSERSDIR)/vmmd.conf
	install -m 644 systemd/vmmd.tmpfiles $(DESTDIR)$(TMPFILESDIR)/vmmd.conf
	@set -e; for page in $(notdir $(MANUALS)); do \
	    install -m 644 $(BUILD)/man/$$page $(DESTDIR)$(MANDIR)/man$${page##*.}/$$page; done
	install -m 644 $(BUILD)/completions/bash $(DESTDIR)$(DATADIR)/bash-completion/completions/vmctl
	install -m 644 $(BUILD)/completions/zsh $(DESTDIR)$(DATADIR)/zsh/site-functions/_vmctl
	install -m 644 $(BUILD)/completions/fish $(DESTDIR)$(DATADIR)/fish/vendor_completions.d/vmctl.fish
	install -m 644 README.md CHANGELOG.md LICENSE docs/errors.md docs/reliability.md api/openapi.yaml $(DESTDIR)$(DOCDIR)/
	@test -n "$(DESTDIR)" || echo "Now: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload && systemctl enable --now vmmd"

uninstall: ## remove what install made; data and configuration stay
	rm -f $(addprefix $(DESTDIR),$(INSTALLED))
	@for dir in $(DESTDIR)$(LIBEXEC) $(DESTDIR)$(DOCDIR); do rmdir "$$dir" 2>/dev/null || true; done

##@ Other

.PHONY: clean help
clean: ## remove everything that was built
	rm -rf build build-asan build-tsan build-clang build-crash

help: ## this list
	@awk -F ':.*## ' '/^##@/ { print "\n" substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
