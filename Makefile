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
DATADIR   = $(PREFIX)/share/vmmd
MANDIR    = $(PREFIX)/share/man
UNITDIR  ?= $(PREFIX)/lib/systemd/system

PACKAGES := libmicrohttpd jansson sqlite3 libuv libcurl libarchive libseccomp nettle
WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wconversion -Wimplicit-fallthrough=5 -Wvla -Wno-missing-field-initializers -Werror
OPTIMISE ?= -O2 -g
SANITIZE ?=
HARDEN   ?= -D_FORTIFY_SOURCE=2 -fstack-protector-strong -fPIE
CPPFLAGS += -D_GNU_SOURCE -DVMMD_VERSION='"$(VERSION)"' -DVMMD_LIBEXEC='"$(LIBEXEC)"' -Idaemon -Iapi -I$(BUILD)/gen
CFLAGS   += -std=gnu17 $(OPTIMISE) $(WARNINGS) $(HARDEN) $(SANITIZE) -pthread $(shell pkg-config --cflags $(PACKAGES) 2>/dev/null)
LDFLAGS  += $(SANITIZE) -pie -Wl,-z,relro,-z,now -pthread

LIB_SRC    := $(filter-out daemon/main.c,$(wildcard daemon/*.c daemon/base/*.c daemon/loop/*.c daemon/model/*.c daemon/qmp/*.c daemon/guest/*.c \
              daemon/image/*.c daemon/net/*.c daemon/cloudinit/*.c daemon/backend/*.c daemon/backend/*/*.c \
              daemon/store/*.c daemon/core/*.c daemon/core/ops/*.c daemon/rest/*.c daemon/http/*.c))
LIB_OBJ    := $(LIB_SRC:%.c=$(BUILD)/obj/%.o)
BASE_OBJ   := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard daemon/base/*.c))
CLIENT_OBJ := $(patsubst %.c,$(BUILD)/obj/%.o,$(wildcard client/*.c))
HELPERS    := $(patsubst daemon/helpers/%.c,$(BUILD)/%,$(wildcard daemon/helpers/*.c))
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
OPS_TESTS  := $(patsubst tests/ops/%.c,$(BUILD)/tests/%,$(wildcard tests/ops/test_*.c))
FAULT_TESTS := $(patsubst tests/fault/%.c,$(BUILD)/tests/%,$(wildcard tests/fault/test_*.c))
C_TESTS    := $(UNIT_TESTS) $(OPS_TESTS) $(FAULT_TESTS)
TEST_LIB   := $(patsubst %.c,$(BUILD)/obj/%.o,$(filter-out $(wildcard tests/unit/test_*.c),$(wildcard tests/unit/*.c)))
BENCHES    := $(patsubst tests/bench/%.c,$(BUILD)/bench/%,$(wildcard tests/bench/*.c))

DAEMON_LIBS = $(shell pkg-config --libs libmicrohttpd jansson sqlite3 libuv libarchive nettle)
CLIENT_LIBS = $(shell pkg-config --libs libcurl jansson)
HELPER_LIBS = $(shell pkg-config --libs libseccomp jansson)

.DEFAULT_GOAL := all
.PHONY: all deps help
.DELETE_ON_ERROR:

all: $(BUILD)/vmmd $(BUILD)/vmctl $(HELPERS)

$(BUILD)/vmmd: $(BUILD)/obj/daemon/main.o $(BUILD)/libvmmd.a
	$(CC) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS)

$(BUILD)/vmctl: $(CLIENT_OBJ) $(BASE_OBJ)
	$(CC) $(LDFLAGS) -o $@ $^ $(CLIENT_LIBS)

$(HELPERS): $(BUILD)/%: $(BUILD)/obj/daemon/helpers/%.o $(BASE_OBJ)
	$(CC) $(LDFLAGS) -o $@ $^ $(HELPER_LIBS)

$(BUILD)/libvmmd.a: $(LIB_OBJ)
	@rm -f $@
	ar rcs $@ $^

$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -MMD -MP -c -o $@ $<

# The contract, as a C array inside the daemon.
$(BUILD)/gen/openapi_yaml.h: api/openapi.yaml
	@mkdir -p $(@D)
	{ echo 'static const unsigned char openapi_yaml[] = {'; od -An -v -tx1 $< | sed 's/ \(..\)/0x\1,/g'; echo '0};'; } > $@

$(BUILD)/obj/daemon/rest/meta.o: $(BUILD)/gen/openapi_yaml.h

$(UNIT_TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/unit/%.o $(TEST_LIB) $(BUILD)/libvmmd.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS) -lcmocka

$(OPS_TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/ops/%.o $(TEST_LIB) $(BUILD)/libvmmd.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS) -lcmocka

$(FAULT_TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/fault/%.o $(TEST_LIB) $(BUILD)/libvmmd.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS) -lcmocka

$(BENCHES): $(BUILD)/bench/%: $(BUILD)/obj/tests/bench/%.o $(BUILD)/libvmmd.a
	@mkdir -p $(@D)
	$(CC) $(LDFLAGS) -o $@ $^ $(DAEMON_LIBS)

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
